"""Step-GRPO as an RLlib algorithm: push weights, roll out, score, learn.

RLlib gives the rollout workers (an `EnvRunnerGroup`: placement, restart), `train`, checkpoints, and Ray Tune. What is learned, and how, is not its
business: the method is in `rollout/episode.py`, `rewards/`, `learner/advantages.py` and `learner/losses.py`.
"""

from __future__ import annotations

import copy
import shutil
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.utils.checkpoints import Checkpointable

from learner.advantages import taught_questions
from learner.deadline import results
from learner.iteration_metrics import reward_metrics, rollout_metrics
from learner.rollout_workers import RolloutWorkers
from learner.step_grpo_config import StepGRPOConfig
from learner.weight_broadcast import WeightBroadcast
from rollout.episode import stream
from rollout.records import ScoredTurn, Trajectory


class StepGRPO(Algorithm):
    """Attributes for those who watch: `trajectories` and `turns` of the last iteration, `policy_version`, `data`, `workers`."""

    config: StepGRPOConfig

    @classmethod
    def get_default_config(cls) -> StepGRPOConfig:
        return StepGRPOConfig()

    def setup(self, config: StepGRPOConfig) -> None:
        super().setup(config)
        assert self.config.data is not None  # validated
        self.data = copy.deepcopy(self.config.data)
        self.workers = RolloutWorkers(self.env_runner_group, self.config.questions_per_chunk, self.config.deadline_s)
        collective = self.config.learner.transport == "collective"
        self._broadcast = WeightBroadcast(self.learner_group.ranks, self.config.deadline_s) if collective else None
        self.trajectories: list[Trajectory] = []
        self.turns: list[ScoredTurn] = []
        self._seconds: dict[str, float] = defaultdict(float)

    def training_step(self) -> None:
        """One iteration. Weights are pushed at its beginning: after a restart or a restore, workers hold none or old ones."""
        self._seconds.clear()
        self.trajectories, self.turns = [], []
        with self._timed("push"):
            self.push_weights()
        for attempt in range(1 + self.config.learner.resample_limit):
            wanted = self.config.questions_per_iteration - len(taught_questions(self.turns, self.config.learner))
            if wanted > 0:
                self.gather(self.data.next(wanted), attempt)
        with self._timed("learn"):
            learned = self.learner_group.update(self.turns)
        self._log("rollout", rollout_metrics(self.trajectories))
        self._log("rollout", {"lost_workers": self.workers.lost, "requeued_chunks": self.workers.requeued_chunks})
        self._log("rollout", {"lost_in_transfer": sum(1 for lost in self.workers.losses if lost.bucket)})
        self._log("reward", reward_metrics(self.turns))
        self._log("learner", learned)
        self._log("seconds", self._seconds)

    def gather(self, questions: Sequence[Any], attempt: int = 0) -> None:
        """Roll out and score, and add it to `trajectories` and `turns`. `attempt`: 1, 2, ... where the questions replace some that taught
        nothing (dynamic sampling: DAPO, arXiv 2503.14476, section 3.2)."""
        again = (attempt,) if attempt else ()
        with self._timed("rollout"):
            trajectories = self.roll_out(questions, seed=stream(self.config.sampling_seed, self.policy_version, *again))
        with self._timed("score"):
            turns = self.score(trajectories)
        if attempt:  # episodes are numbered within one call
            turns = [replace(turn, episode=f"{turn.episode}/{attempt}") for turn in turns]
        self.trajectories, self.turns = self.trajectories + trajectories, self.turns + turns

    @property
    def policy_version(self) -> int:
        return self.learner_group.policy_version

    def push_weights(self) -> None:
        """Bring all rollout workers to the learner's policy version; nothing is sent to workers that hold it."""
        if self.workers.version != self.policy_version:
            sent = self.workers.broadcast(self.policy_version, self._broadcast) if self._broadcast else None
            self.workers.push(self.policy_version, sent or self.learner_group.publish())

    def roll_out(self, questions: Sequence[Any], *, seed: int, overrides: dict[str, Any] | None = None) -> list[Trajectory]:
        """Trajectories in the order of the questions, by all workers. `overrides` replaces fields of the rollout configuration: an evaluation
        is `push_weights()` and `roll_out(questions, seed=0, overrides={"temperature": 0.0, "group_size": 1})`."""
        return self.workers.roll_out(questions, seed, overrides)

    def score(self, trajectories: Sequence[Trajectory]) -> list[ScoredTurn]:
        """Scored turns in the order of the trajectories, which the reward actors share."""
        share = max(1, -(-len(trajectories) // len(self.config.reward_actors)))
        refs = [
            actor.score.remote(trajectories[i * share : (i + 1) * share])
            for i, actor in enumerate(self.config.reward_actors)
            if i * share < len(trajectories)
        ]
        scored = results(refs, f"the rewards of {len(trajectories)} trajectories", self.config.deadline_s)
        return [turn for turns in scored for turn in turns]

    def get_state(self, components: Any = None, *, not_components: Any = None, **kwargs: Any) -> dict[str, Any]:
        state = super().get_state(components, not_components=not_components, **kwargs)
        return {**state, "questions": self.data.get_state()}

    def set_state(self, state: dict[str, Any]) -> None:
        super().set_state({key: value for key, value in state.items() if key != "questions"})
        self.data.set_state(state["questions"])

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

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self._seconds[phase] += time.perf_counter() - begin

    def _log(self, key: str, values: dict[str, float]) -> None:
        self.metrics.log_dict(values, key=key, window=1)
