"""The rollout worker: one process with a copy of the policy, run by RLlib as an `EnvRunner`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import psutil
import ray
import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.env.env_runner import EnvRunner
from ray.rllib.utils.checkpoints import Checkpointable

from rollout.broadcast import BroadcastGroup
from rollout.engine_timeline import EngineTimeline
from rollout.engines.choose import make_engine
from rollout.episode import RecordedTurn
from rollout.episode_run import EpisodeRun, Worked
from rollout.policy import Policy
from rollout.records import Question, Trajectory
from rollout.weights import Bucket, Inbox, PublishedBucket, views

NO_SPACE = gym.spaces.Box(-1, 1, (1,), np.float32)
"""RLlib asks every env runner for its spaces; questions and answers have none."""


class WrongPolicyVersion(RuntimeError):
    """The worker holds other weights than the ones it was asked to sample with."""


class RolloutWorker(EnvRunner, Checkpointable):
    """Samples trajectories, with exactly the policy version that it is asked for.

    `config` (a `StepGRPOConfig`) says which policy, which retriever (None in `offline` mode) and how to sample. A worker begins without a
    version: it has to be sent weights first, as after every restart.
    """

    def __init__(self, *, config: Any, **kwargs: Any):
        super().__init__(config=config, **kwargs)
        self.config.data = None  # the questions come with each call
        torch.set_num_threads(config.rollout.threads)
        device = "cuda" if config.num_gpus_per_env_runner and config.rollout.engine != "vllm" else "cpu"  # vLLM has a copy of its own
        policy = Policy.load(config.policy_path, dtype=config.learner.dtype, device=device)
        self.engine = make_engine(policy, config.rollout)
        self._inbox, self._device = Inbox(), policy.device
        self.timeline = EngineTimeline(self.engine, drawn=config.trace)
        self._run: EpisodeRun | None = None

    def receive(self, number: int, bucket: Bucket) -> str:
        """Hold a bucket of weights until `use_weights`; the policy stays as it is. Returns the address of this node.

        Raises `CorruptWeightsError` when the bytes are not the ones that were packed.
        """
        self._inbox.take(number, bucket)
        return ray.util.get_node_ip_address()

    def join_broadcast(self, host: str, port: int, rank: int, size: int, deadline_s: float) -> str:
        """Meet the learner and the other workers, to receive buckets without the object store. Returns the address of this node."""
        self._broadcast = BroadcastGroup(host, port, rank, size, deadline_s, self._device)
        return ray.util.get_node_ip_address()

    def receive_broadcast(self, number: int, announced: PublishedBucket) -> None:
        """As `receive`, but the bytes come by broadcast. Raises RuntimeError when the sender or another receiver is gone."""
        flat = self._broadcast.receive(number, announced.bytes)
        self._inbox.take(number, Bucket(flat if flat.is_cuda else flat.numpy(), announced.manifest, announced.checksum))

    def use_weights(self, version: int, checksums: Sequence[int]) -> tuple[int, int]:
        """Take over these buckets, all at once; returns their version and the checksum of all.

        Raises `MissingWeightsError` when one was not received, ValueError when names or shapes do not fit.
        """
        self._give_up()
        weights = self._inbox.weights(version, checksums)
        self.engine.update_weights(version, {name: tensor for bucket in weights.buckets for name, tensor in views(bucket).items()})
        return version, weights.checksum

    def sample(
        self,
        questions: Sequence[Question | RecordedTurn] = (),
        policy_version: int = 0,
        config_overrides: dict[str, Any] | None = None,
        seed: int = 0,
    ) -> list[Trajectory]:
        """Trajectories in the order of the questions (in `offline` mode: of the recorded turns that are short enough).

        What is sampled for a question depends on seed, question and weights, not on the worker. `config_overrides` replaces fields of the
        rollout configuration for this call. Raises `WrongPolicyVersion` when the worker holds another version.
        """
        worked = self.begin(questions, policy_version, config_overrides, seed)
        return [trajectory for _, found in sorted(worked.finished, key=lambda done: done[0]) for trajectory in found]

    def begin(
        self,
        questions: Sequence[Question | RecordedTurn],
        policy_version: int,
        config_overrides: dict[str, Any] | None = None,
        seed: int = 0,
        seconds: float = math.inf,
    ) -> Worked:
        """The same for about so many seconds, after which `go_on` continues; what was not finished of earlier questions is given up."""
        held = self.engine.policy_version
        if held != policy_version:
            raise WrongPolicyVersion(
                f"rollout worker {self.worker_index} holds policy version {held}, was asked for {policy_version}; send weights"
            )
        self._give_up()
        config = replace(self.config.rollout, **(config_overrides or {}))
        self._run = EpisodeRun(questions, self.engine, self.config.retriever, config, seed, self.timeline)
        return self.go_on(policy_version, seconds)

    def go_on(self, policy_version: int, seconds: float = math.inf) -> Worked:
        """Raises `WrongPolicyVersion` when there is nothing of this version to go on with: the worker was restarted."""
        if self._run is None or self.engine.policy_version != policy_version:
            raise WrongPolicyVersion(f"rollout worker {self.worker_index} has no questions of policy version {policy_version}")
        self.timeline.resume()
        try:
            finished = self._run.work(seconds)
        except BaseException:  # a fault of the program: nothing of these questions may be left in the engine
            self._give_up()
            raise
        memory_mb = psutil.Process().memory_info().rss / 2**20
        return Worked(finished, self._run.unfinished, self.timeline.report(self.worker_index, policy_version, memory_mb))

    def _give_up(self) -> None:
        if self._run is not None:
            self._run.close()
            self._run = None

    def assert_healthy(self) -> None:
        assert self.engine is not None

    def get_spaces(self) -> dict[str, tuple[gym.Space, gym.Space]]:
        return {"__env__": (NO_SPACE, NO_SPACE), DEFAULT_MODULE_ID: (NO_SPACE, NO_SPACE)}

    def get_metrics(self) -> Any:
        return self.metrics.reduce()

    def get_state(self, components: Any = None, *, not_components: Any = None, **kwargs: Any) -> dict[str, Any]:
        """Nothing: a worker can be replaced by a new one at any time."""
        return {}

    def set_state(self, state: dict[str, Any]) -> None:
        pass

    def get_ctor_args_and_kwargs(self) -> tuple[tuple, dict[str, Any]]:
        return (), {"config": self.config}
