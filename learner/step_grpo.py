"""Step-GRPO as an RLlib algorithm: push weights, roll out, score, learn.

RLlib gives the rollout workers (an `EnvRunnerGroup`: placement, restart), `train`, checkpoints, and Ray Tune. What is learned, and how, is not its
business: the method is in `rollout/episode.py`, `rewards/`, `learner/advantages.py` and `learner/losses.py`.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.utils.checkpoints import Checkpointable

from learner.advantages import taught_questions
from learner.cycles import no_search_for_cycles
from learner.deadline import results
from learner.experience import Experience
from learner.iteration_metrics import reward_metrics, rollout_metrics, staleness, worker_metrics
from learner.overlong import penalised
from learner.pipeline import one_step_off
from learner.question_ledger import QuestionLedger
from learner.rollout_batch import CUT_OFF_AT_MOST, Batch, Patience
from learner.rollout_workers import RolloutWorkers
from learner.scoring import Scoring
from learner.step_grpo_config import StepGRPOConfig
from learner.weight_broadcast import WeightBroadcast
from rollout.episode import stream
from rollout.records import ScoredTurn, Trajectory
from rollout.timeline import Span, Timeline


class StepGRPO(Algorithm):
    """Attributes for those who watch: `trajectories` and `turns` that the last iteration learned from, questions that it `dropped` (id, reason),
    `timelines` of its processes, `policy_version`, `data`, `workers`."""

    config: StepGRPOConfig

    @classmethod
    def get_default_config(cls) -> StepGRPOConfig:
        return StepGRPOConfig()

    @property
    def env_runner_group(self) -> Any:
        return self._env_runner_group

    @env_runner_group.setter
    def env_runner_group(self, group: Any) -> None:
        """RLlib sets it while it starts, and then asks the workers for their spaces without a deadline: they are waited for here, with one.
        Raises `DeadlineError`."""
        self._env_runner_group = group
        if group:
            starting = [worker.assert_healthy.remote() for worker in group._worker_manager.actors().values()]
            what = "the rollout workers to start (are there free CPUs, and GPUs for train.gpus_per_rollout_worker?)"
            results(starting, what, self.config.deadline_s)

    def setup(self, config: StepGRPOConfig) -> None:
        super().setup(config)
        assert self.config.data is not None  # validated
        self.data = copy.deepcopy(self.config.data)
        self.questions = QuestionLedger(self.data)
        self.workers = RolloutWorkers(self.env_runner_group, self.config.questions_per_chunk, self.config.deadline_s)
        collective = self.config.learner.transport == "collective"
        self._broadcast = WeightBroadcast(self.learner_group.ranks, self.config.deadline_s) if collective else None
        if not self.config.overlap:  # beside an update the learner's weights are not those of this version any more
            self.workers.republish = self.learner_group.publish
        self.trajectories: list[Trajectory] = []
        self.turns: list[ScoredTurn] = []
        self.dropped: list[tuple[str, str]] = []
        self.ahead: Experience | None = None
        """`overlap=1`: what the next iteration learns from."""
        self._driver, self._learner = Timeline(), Timeline()
        self.timelines: dict[str, list[Span]] = {}
        self._beginning = self.get_state(not_components="learner_group")

    @no_search_for_cycles()
    def training_step(self) -> None:
        """One iteration. Weights are pushed at its beginning: after a restart or a restore, workers hold none or old ones."""
        self._driver.drawn = self._learner.drawn = self.config.trace
        with self._driver.doing("push"):
            self.push_weights()
        version = self.policy_version
        if self.config.overlap:
            experience, gathered, learned = one_step_off(self.ahead, version, self.gather, self.learn)
            self.ahead = gathered[-1]
        else:
            experience = self.gather(version)
            gathered, learned = [experience], self.learn(experience)
        self.questions.settle(experience.asked)
        self.trajectories, self.turns, self.dropped = experience.trajectories, experience.turns, experience.dropped
        self._report(experience, gathered, version, learned)

    def gather(self, learned_at: int) -> Experience:
        """Roll out and score the questions of one iteration, which version `learned_at` will learn from, with the version that workers hold.
        Raises `AccountError`.

        Where questions taught nothing, others replace them (dynamic sampling: DAPO, arXiv 2503.14476, section 3.2).
        """
        gathered, rollout = Experience(), self.config.rollout
        for attempt in range(1 + self.config.learner.resample_limit):
            wanted = self.config.questions_per_iteration - len(taught_questions(gathered.turns, self.config.learner))
            if wanted <= 0:
                break
            asked = gathered.take(self.questions.take(wanted))
            batch = Batch.of(
                [entry.question for entry in asked],
                self.workers.chunk,
                stream(self.config.sampling_seed, learned_at, *[attempt] * bool(attempt)),
                patience=Patience(rollout.enough, rollout.straggler_s),
                waited_for=[place for place, entry in enumerate(asked) if entry.cut_off >= CUT_OFF_AT_MOST],
            )
            scoring = Scoring(self.config.reward_actors, self.config.deadline_s)
            with self._driver.doing("rollout"):
                for chunk, trajectories in self.workers.work(batch):
                    scoring.begin(chunk, trajectories)
            with self._driver.doing("score"):
                turns = penalised(scoring.turns(), self.config.learner, rollout)
            episodes = rollout.group_size if rollout.mode == "chain" else 1
            self.questions.cut_off(gathered.add(batch, asked, scoring.asked, turns, attempt, episodes))
        return gathered

    def learn(self, experience: Experience) -> dict[str, float]:
        with self._learner.doing("learn"):
            return self.learner_group.update(experience.turns)

    @property
    def policy_version(self) -> int:
        return self.learner_group.policy_version

    def doing_at(self, when: float, learner: bool = False) -> str:
        """What this process was busy with then (seconds since the epoch): push, rollout, score or learn; empty: none of them. With `learner`
        what the learner did is told first: with `overlap=1` both work at once."""
        timelines = (self._learner, self._driver) if learner else (self._driver, self._learner)
        return next((name for timeline in timelines if (name := timeline.at(when))), "")

    @property
    def broken(self) -> tuple[float, str]:
        """When, and in which of these, an iteration last ended with an exception."""
        return max(self._driver.broken, self._learner.broken)

    def push_weights(self) -> None:
        """Bring all rollout workers to the learner's policy version; nothing is sent to workers that hold it."""
        if self.workers.version != self.policy_version:
            sent = self.workers.broadcast(self.policy_version, self._broadcast) if self._broadcast else None
            self.workers.push(self.policy_version, sent or self.learner_group.publish())

    def restart_learner(self) -> None:
        """New learner processes in place of those that are lost, and everything as it was before the first iteration. `restore_from_path` then
        goes on from a checkpoint."""
        self.learner_group.restart()
        if self._broadcast:
            self._broadcast = WeightBroadcast(self.learner_group.ranks, self.config.deadline_s)
        for worker in self.workers.handles:  # what the lost learner had begun to send is not what the new one sends
            self.workers.transfer.forget(worker)
        self.workers.version = -1
        self.set_state(self._beginning)

    def roll_out(self, questions: Sequence[Any], *, seed: int, overrides: dict[str, Any] | None = None) -> list[Trajectory]:
        """Trajectories in the order of the questions, by all workers. `overrides` replaces fields of the rollout configuration: an evaluation
        is `push_weights()` and `roll_out(questions, seed=0, overrides={"temperature": 0.0, "group_size": 1})`."""
        return self.workers.roll_out(questions, seed, overrides)

    def get_state(self, components: Any = None, *, not_components: Any = None, **kwargs: Any) -> dict[str, Any]:
        state = super().get_state(components, not_components=not_components, **kwargs)
        return {**state, "questions": self.questions.get_state()}

    def set_state(self, state: dict[str, Any]) -> None:
        super().set_state({key: value for key, value in state.items() if key != "questions"})
        self.questions.set_state(state["questions"])
        self.ahead = None

    def save_to_path(self, path: Any = None, **kwargs: Any) -> str:
        """Write learner, metrics, iteration and the position in the data; aside first, so that a folder of this name is always complete."""
        if path is None:
            return super().save_to_path(None, **kwargs)
        folder = Path(path).absolute()
        aside = folder.with_name(folder.name + ".partial")
        shutil.rmtree(aside, ignore_errors=True)
        super().save_to_path(aside, **kwargs)
        if folder.exists():
            shutil.rmtree(folder)
        aside.rename(folder)
        return str(folder)

    def restore_from_path(self, path: Any, *args: Any, **kwargs: Any) -> None:
        """Go on exactly where `save_to_path` was called. Workers get the weights at the next push, not here."""
        Checkpointable.restore_from_path(self, Path(path).absolute(), *args, **kwargs)
        self.workers.version = -1

    def get_checkpointable_components(self) -> list[tuple[str, Checkpointable]]:
        return [("learner_group", self.learner_group)]

    def get_ctor_args_and_kwargs(self) -> tuple[tuple, dict[str, Any]]:
        """Nothing: a configuration holds handles of actors that will be gone. Build the algorithm, then restore it."""
        return (), {}

    def restore_env_runners(self, env_runner_group: Any) -> list[int]:
        """`RolloutWorkers` takes restarted workers back in, while the others work."""
        return []

    def cleanup(self) -> None:
        """Ends all processes, whatever they are doing: RLlib would first wait for a word of each rollout worker, without a deadline."""
        if group := getattr(self, "_env_runner_group", None):
            group._worker_manager.clear()
        super().cleanup()

    def _report(self, experience: Experience, gathered: Sequence[Experience], version: int, learned: dict[str, float]) -> None:
        """`gathered`: what was rolled out in this iteration, `experience`: what was learned from, by the learner of this version."""
        reports = [report for part in gathered for report in part.reports]
        self._log("rollout", rollout_metrics(experience.trajectories) | experience.counts() | staleness(experience.turns, version))
        self._log("rollout", {"lost_workers": self.workers.lost, "requeued_chunks": self.workers.requeued_chunks})
        self._log(
            "rollout",
            {"lost_in_transfer": sum(1 for lost in self.workers.losses if lost.bucket), "asked_again": self.questions.asked_again},
        )
        self._log("workers", worker_metrics(reports))
        self._log("reward", reward_metrics(experience.turns))
        self._log("learner", learned)
        (seconds, driver), (learning, learner) = self._driver.take(), self._learner.take()
        self._log("seconds", seconds | learning)
        self.timelines = {"driver": driver, "learner": [*learner, *self.learner_group.steps]} if self.config.trace else {}
        for report in reports:
            if report.spans:
                self.timelines.setdefault(f"rollout worker {report.worker}", []).extend(report.spans)

    def _log(self, key: str, values: dict[str, float]) -> None:
        self.metrics.log_dict(values, key=key, window=1)
