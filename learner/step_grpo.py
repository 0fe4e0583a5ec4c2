"""Step-GRPO as an RLlib algorithm: push weights, roll out, score, learn. Trajectories and scored turns travel by reference."""

from __future__ import annotations

import copy
import logging
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.utils.checkpoints import Checkpointable

from learner.deadline import RolloutsLostError, results
from learner.iteration_data import IterationData, reward_metrics, rollout_metrics, staleness, worker_metrics
from learner.learner_group import written_aside
from learner.objective.advantages import questions_with_variance
from learner.question_ledger import CUT_OFF_AT_MOST, QuestionLedger
from learner.reward_calls import RewardCalls
from learner.rollout_batch import RolloutBatch
from learner.rollout_workers import RolloutWorkers, garbage_collector_paused
from learner.step_grpo_config import StepGRPOConfig
from learner.weight_transfer import WeightBroadcast
from rollout.episode import derive_seed
from rollout.records import ScoredTurn, Trajectory
from rollout.timeline import Span, Timeline

LOST_AT_MOST = 3  # times that an iteration may lose its rollouts with a node; then the error is raised
logger = logging.getLogger(__name__)


class StepGRPO(Algorithm):
    """For use from outside: `data_of_iteration`, which was learned from last; `timelines`; `policy_version`, `data` and `workers`."""

    config: StepGRPOConfig

    @classmethod
    def get_default_config(cls) -> StepGRPOConfig:
        return StepGRPOConfig(cls)

    def setup(self, config: StepGRPOConfig) -> None:
        super().setup(config)
        assert self.config.data is not None  # validated
        self.data = copy.deepcopy(self.config.data)
        self.questions = QuestionLedger(self.data)
        chunk, partial = self.config.questions_per_chunk, self.config.rollout.partial
        self.workers = RolloutWorkers(self.env_runner_group, chunk, self.config.deadline_s, partial)
        collective = self.config.learner.transport == "collective"
        self._broadcast = WeightBroadcast(self.learner_group.senders, self.config.deadline_s) if collective else None
        if not self.config.overlap:  # during an overlapping update the learner's weights are no longer those of this version
            self.workers.republish = self.learner_group.publish
        self.data_of_iteration = IterationData()
        self.ahead: IterationData | None = None  # `overlap=1`: what the next iteration learns from
        self._driver, self._learner = Timeline(), Timeline()
        self.timelines: dict[str, list[Span]] = {}
        self._beginning = self.get_state(not_components="learner_group")

    @garbage_collector_paused()
    def training_step(self) -> None:
        """One iteration. Weights are pushed first: after a restart or a restore, workers hold none or old ones. If rollouts are lost with a node
        before they were learned from, their questions are asked again."""
        self._driver.drawn = self._learner.drawn = self.config.trace
        self.data_of_iteration = IterationData()  # frees what the last iteration rolled out
        with self._driver.doing("push"):
            self.push_weights()
        version = self.policy_version
        for attempt in range(1, LOST_AT_MOST + 1):
            try:
                data, self.ahead = self.ahead or self.gather(version), None
                metrics = self.learn_one_step_off(data) if self.config.overlap else self.learn(data)
                break
            except RolloutsLostError as error:
                if attempt == LOST_AT_MOST:
                    raise
                logger.warning(f"{error}; their questions are asked again")
                self.ahead = None
                self.questions.ask_again()
        self.questions.settle(data.asked)
        self.data_of_iteration = data
        self._report(data, version, metrics)

    def gather(self, learned_at: int) -> IterationData:
        """Roll out and score the questions that version `learned_at` will learn from, with the version that workers hold. Questions without
        variance are replaced by others (dynamic sampling: DAPO, arXiv 2503.14476, section 3.2). Raises `AccountError`; `RolloutsLostError`."""
        data, rollout, learner = IterationData(), self.config.rollout, self.config.learner
        waits = learner.max_staleness and learner.too_old == "wait"
        moves = learner.max_staleness - self.config.overlap if waits else CUT_OFF_AT_MOST  # of a straggler; then it is waited for
        for attempt in range(1 + learner.resample_limit):
            wanted = self.config.questions_per_iteration - len(questions_with_variance(data.turns.summary, learner, learned_at))
            if wanted <= 0:
                break
            asked = self.questions.take(wanted)
            seed = derive_seed(self.config.sampling_seed, learned_at, *[attempt] * bool(attempt))
            waited_for = [place for place, entry in enumerate(asked) if entry.cut_off >= moves]
            stragglers = rollout.enough, rollout.straggler_s, waited_for
            batch = RolloutBatch([entry.question for entry in asked], self.workers.chunk, seed, None, *stragglers)
            rewards = RewardCalls(self.config.reward_actors, self.config.deadline_s, learner.normalisation == "components")
            with self._driver.doing("rollout"):
                for chunk, rolled_out in self.workers.work(batch):
                    rewards.begin(chunk, rolled_out)
            with self._driver.doing("score"):
                turns = rewards.turns()
            episodes = rollout.group_size if rollout.mode == "chain" else 1
            self.questions.cut_off(data.add(batch, asked, rewards.asked, turns, attempt, episodes))
        return data

    def learn(self, data: IterationData) -> dict[str, float]:
        with self._learner.doing("learn"):
            return self.learner_group.update(data.turns)

    def learn_one_step_off(self, data: IterationData) -> dict[str, float]:
        """While a batch is learned from, the next is rolled out, one policy version behind (Noukhovitch et al. 2024, arXiv 2410.18252), which
        `learner.sampler_correction` corrects for. Raises what either of them raised, after both have ended."""
        next_version = self.policy_version + 1
        with ThreadPoolExecutor(1, thread_name_prefix="learn") as beside:
            learning = beside.submit(self.learn, data)
            try:
                self.ahead = self.gather(next_version)
            except RolloutsLostError as error:
                logger.warning(f"{error}; their questions are asked again")
        metrics = learning.result()
        if self.ahead is None:
            self.questions.settle(data.asked)
            self.questions.ask_again()
        return metrics

    @property
    def policy_version(self) -> int:
        return self.learner_group.policy_version

    @property
    def trajectories(self) -> list[Trajectory]:
        return self.data_of_iteration.fetch_trajectories(self.config.deadline_s)

    @property
    def turns(self) -> list[ScoredTurn]:
        return self.data_of_iteration.turns.fetch(self.config.deadline_s)

    def phase_at(self, when: float, learner: bool = False) -> str:
        """`push`, `rollout`, `score`, `learn` or nothing, at that time (seconds since the epoch). `learner`: prefer the learner's phase."""
        timelines = (self._learner, self._driver) if learner else (self._driver, self._learner)
        return next((name for timeline in timelines if (name := timeline.at(when))), "")

    @property
    def failed_phase(self) -> tuple[float, str]:
        """(time, phase) in which an iteration last ended with an exception."""
        return max(self._driver.failed, self._learner.failed)

    def push_weights(self) -> None:
        if self.workers.version != self.policy_version:
            sent = self.workers.broadcast(self.policy_version, self._broadcast) if self._broadcast else None
            self.workers.push(self.policy_version, sent or self.learner_group.publish())

    def restart_learner(self) -> None:
        """Start new learner processes, and reset everything to before the first iteration; then call `restore_from_path`."""
        self.learner_group.restart()
        if self._broadcast:
            self._broadcast = WeightBroadcast(self.learner_group.senders, self.config.deadline_s)
        for worker in self.workers.handles:  # the new learner sends all buckets again, whatever the lost one had sent
            self.workers.transfer.forget(worker)
        self.workers.version = -1
        self.set_state(self._beginning)

    def roll_out(self, questions: Sequence[Any], *, seed: int, overrides: dict[str, Any] | None = None) -> list[Trajectory]:
        """Trajectories in the order of the questions; `overrides` replaces fields of the rollout configuration. Call `push_weights` first."""
        return self.workers.roll_out(questions, seed, overrides)

    def _report(self, data: IterationData, version: int, learned: dict[str, float]) -> None:
        reports = (self.ahead or data).reports  # of the rollouts during this iteration
        losses = self.workers.losses
        counts = {"lost_workers": len(losses), "lost_in_transfer": sum(bool(lost.bucket) for lost in losses)}
        counts |= {"requeued_chunks": self.workers.requeued_chunks, "asked_again": self.questions.asked_again}
        ages = staleness(data.turns.summary, self.config.learner, version)
        (seconds, driver), (learning, learner) = self._driver.take(), self._learner.take()
        found = {
            "rollout": rollout_metrics(data.summaries) | data.counts() | ages | counts,
            "workers": worker_metrics(reports),
            "reward": reward_metrics(data.turns.summary),
            "learner": learned,
            "seconds": seconds | learning,
        }
        for key, values in found.items():
            self.metrics.log_dict(values, key=key, window=1)
        self.timelines = {"driver": driver, "learner": [*learner, *self.learner_group.steps]} if self.config.trace else {}
        for report in reports:
            if report.spans:
                self.timelines.setdefault(f"rollout worker {report.worker}", []).extend(report.spans)

    # Methods that RLlib calls

    @property
    def env_runner_group(self) -> Any:
        return self._env_runner_group

    @env_runner_group.setter
    def env_runner_group(self, group: Any) -> None:
        self._env_runner_group = group
        if group:
            starting = [worker.assert_healthy.remote() for worker in group._worker_manager.actors().values()]
            what = "the rollout workers to start (are there free CPUs, and GPUs for train.gpus_per_rollout_worker?)"
            results(starting, what, self.config.deadline_s)

    def _setup_logdir(self) -> None:
        """RLlib would make ~/ray_results, in a home folder that may be read-only."""
        if self._storage:
            super()._setup_logdir()
        else:
            self._logdir = tempfile.mkdtemp(prefix="rllib-")

    def get_state(self, components: Any = None, *, not_components: Any = None, **kwargs: Any) -> dict[str, Any]:
        state = super().get_state(components, not_components=not_components, **kwargs)
        return {**state, "questions": self.questions.get_state()}

    def set_state(self, state: dict[str, Any]) -> None:
        super().set_state({key: value for key, value in state.items() if key != "questions"})
        self.questions.set_state(state["questions"])
        self.ahead = None

    def save_to_path(self, path: Any = None, **kwargs: Any) -> str:
        """Write learner, metrics, iteration and position in the data to a temporary folder, then rename it: `path` is always complete."""
        if path is None:
            return super().save_to_path(None, **kwargs)
        with written_aside(path) as aside:
            super().save_to_path(aside, **kwargs)
        return str(Path(path).absolute())

    def restore_from_path(self, path: Any, *args: Any, **kwargs: Any) -> None:
        """Continue exactly from where `save_to_path` was called. Workers get the weights at the next push."""
        Checkpointable.restore_from_path(self, Path(path).absolute(), *args, **kwargs)
        self.workers.version = -1

    def get_checkpointable_components(self) -> list[tuple[str, Checkpointable]]:
        return [("learner_group", self.learner_group)]

    def get_ctor_args_and_kwargs(self) -> tuple[tuple, dict[str, Any]]:
        return (), {}  # a configuration holds handles of actors that will be gone: build the algorithm, then restore it

    def restore_env_runners(self, env_runner_group: Any) -> list[int]:
        return []  # `RolloutWorkers` does this

    def cleanup(self) -> None:
        """End all processes at once: RLlib would first wait for each rollout worker, without a deadline."""
        if group := getattr(self, "_env_runner_group", None):
            group._worker_manager.clear()
        super().cleanup()
