"""The rollout worker: one process with a copy of the policy, run by RLlib as an `EnvRunner`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import ray
import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.env.env_runner import EnvRunner
from ray.rllib.utils.checkpoints import Checkpointable

from rollout.broadcast import BroadcastGroup
from rollout.engines.choose import make_engine
from rollout.episode import RecordedTurn, roll_out_recorded
from rollout.episode_pool import roll_out
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
        device = "cuda" if config.num_gpus_per_env_runner else "cpu"
        policy = Policy.load(config.policy_path, dtype=config.learner.dtype, device=device)
        self.engine = make_engine(policy, config.rollout)
        self._inbox, self._device = Inbox(), policy.device

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
        held = self.engine.policy_version
        if held != policy_version:
            raise WrongPolicyVersion(
                f"rollout worker {self.worker_index} holds policy version {held}, was asked for {policy_version}; send weights"
            )
        config = replace(self.config.rollout, **(config_overrides or {}))
        if config.mode == "offline":
            return roll_out_recorded(questions, self.engine, config, seed)  # type: ignore[arg-type]
        return roll_out(questions, self.engine, self.config.retriever, config, seed)  # type: ignore[arg-type]

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
