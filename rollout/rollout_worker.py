"""The rollout worker: one process with a copy of the policy, run by RLlib as an `EnvRunner`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import ray
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.env.env_runner import EnvRunner
from ray.rllib.utils.checkpoints import Checkpointable

from rollout.engines import make_engine
from rollout.engines.base import ended_with_its_engine
from rollout.measurement import RETRIES, Measures, Weights
from rollout.records import Question, RecordedTurn, Trajectory
from rollout.roll_out import EngineTimeline, EpisodeRun, WorkReport
from rollout.weight_buckets import BroadcastGroup, Bucket, Inbox, PublishedBucket, seal

NO_SPACE = gym.spaces.Box(-1, 1, (1,), np.float32)  # RLlib asks every env runner for its spaces; questions and answers have none


class WrongPolicyVersion(RuntimeError):
    """The worker holds another policy version than the one that it should sample with."""


class RolloutWorker(Measures, EnvRunner, Checkpointable):
    """Samples trajectories with exactly the policy version that it is asked for. It starts without one: send weights first, also after
    every restart and every measurement. `config`: a `StepGRPOConfig`."""

    def __init__(self, *, config: Any, **kwargs: Any):
        super().__init__(config=config, **kwargs)
        self.config.data = None  # the questions come with each call
        self.engine = make_engine(config.policy_path, config.rollout, config.learner.dtype, config.num_gpus_per_env_runner > 0)
        self.held = config.policy_path
        self.dtype, self.deadline_s = config.learner.dtype, config.deadline_s
        self._inbox, self._device = Inbox(), self.engine.policy.device
        self.timeline = EngineTimeline(self.engine, drawn=config.trace)
        self._run: EpisodeRun | None = None

    def incarnation(self) -> str:
        """Id of the process, which changes with every restart; the handle stays the same."""
        return ray.get_runtime_context().get_worker_id()

    def receive(self, number: int, bucket: Bucket) -> str:
        """Hold a bucket until `use_weights`. Returns the address of this node. Raises `CorruptWeightsError`."""
        self._inbox.take(number, bucket)
        return ray.util.get_node_ip_address()

    def join_broadcast(self, host: str, port: int, rank: int, size: int, deadline_s: float) -> str:
        """Connect to the learner and the other workers, to receive buckets without the object store. Returns the address of this node."""
        self._broadcast = BroadcastGroup(host, port, rank, size, deadline_s, self._device)
        return ray.util.get_node_ip_address()

    def receive_broadcast(self, number: int, announced: PublishedBucket) -> None:
        """As `receive`, but the bytes come by broadcast. Raises RuntimeError when the sender or another receiver is gone."""
        flat = self._broadcast.receive(number, announced.bytes)
        self._inbox.take(number, Bucket(flat if flat.is_cuda else flat.numpy(), announced.manifest, announced.checksum))

    def use_weights(self, version: int, checksums: Sequence[int]) -> tuple[int, int]:
        """Load these buckets; returns the version and the checksum of all. Unfinished questions are dropped, or wait for `go_on`
        (`rollout.partial`). Raises `MissingWeightsError`; ValueError for other names or shapes."""
        if not self.config.rollout.partial:
            self._drop_run()
        with ended_with_its_engine():
            self.engine.update_weights(version, self._inbox.tensors(version, checksums))
        self.held = seal(version, checksums)
        return version, self.held

    @ray.method(max_task_retries=RETRIES)
    def measure(self, weights: Weights, items: Sequence[Any], *rest: Any) -> list[Trajectory]:
        self._drop_run()
        try:
            return super().measure(weights, items, *rest)
        finally:
            self.timeline.leave_out()

    @ray.method(num_returns=2)
    def sample(
        self,
        questions: Sequence[Question | RecordedTurn] = (),
        policy_version: int = 0,
        config_overrides: dict[str, Any] | None = None,
        seed: int = 0,
        seconds: float = math.inf,
        repeats: Sequence[int] | None = None,
    ) -> tuple[WorkReport, list[Trajectory]]:
        """Work on these questions for about `seconds`; then `go_on` continues. Unfinished earlier questions are dropped. Returns a report for the
        caller, and the finished trajectories in the order of the questions, to be passed on. Raises `WrongPolicyVersion`."""
        if (held := self.engine.policy_version) != policy_version:
            wrong = f"rollout worker {self.worker_index} holds policy version {held}, was asked for {policy_version}; send weights"
            raise WrongPolicyVersion(wrong)
        self._drop_run()
        config = replace(self.config.rollout, **(config_overrides or {}))
        self._run = EpisodeRun(questions, self.engine, self.config.retriever, config, seed, self.timeline, repeats)
        return self.go_on(policy_version, seconds)

    @ray.method(num_returns=2)
    def go_on(self, policy_version: int, seconds: float = math.inf) -> tuple[WorkReport, list[Trajectory]]:
        """Continue the last `sample` call. Raises `WrongPolicyVersion` if there is none of this version: the worker was restarted."""
        if self._run is None or self.engine.policy_version != policy_version:
            raise WrongPolicyVersion(f"rollout worker {self.worker_index} has no questions of policy version {policy_version}")
        self.timeline.resume()
        try:
            with ended_with_its_engine():
                finished = self._run.work(seconds)
        except BaseException:  # a bug: remove these questions from the engine
            self._drop_run()
            raise
        report = self.timeline.report(self.worker_index, policy_version, finished, self._run.unfinished)
        return report, [trajectory for _, found in finished for trajectory in found]

    def _drop_run(self) -> None:
        run, self._run = self._run, None
        if run is not None:
            run.close()

    def assert_healthy(self) -> None:
        assert self.engine is not None

    def get_spaces(self) -> dict[str, tuple[gym.Space, gym.Space]]:
        return {"__env__": (NO_SPACE, NO_SPACE), DEFAULT_MODULE_ID: (NO_SPACE, NO_SPACE)}

    def get_metrics(self) -> Any:
        return self.metrics.reduce()

    def get_state(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return {}  # a worker can be replaced by a new one at any time

    def set_state(self, state: dict[str, Any]) -> None:
        pass

    def get_ctor_args_and_kwargs(self) -> tuple[tuple, dict[str, Any]]:
        return (), {"config": self.config}
