"""Measuring a policy: questions are rolled out with any weights, in a rollout worker between iterations, or in a process of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ray

from rollout.config import RolloutConfig
from rollout.engines import make_engine
from rollout.engines.base import Engine, ended_with_its_engine
from rollout.records import Trajectory
from rollout.roll_out import roll_out
from rollout.weight_buckets import PublishedWeights, refuse_corrupt, unpack_weights

Weights = str | PublishedWeights  # A policy folder, or weights in the object store
RETRIES = 2  # of a measurement whose worker dies


class Measures:
    """A process with an engine that can measure. A measurement leaves its weights in the engine."""

    engine: Engine
    held: str | int = ""  # What the engine holds: a policy folder, the checksum of published weights, or empty: something else
    dtype, deadline_s = "float32", 600.0

    @ray.method(max_task_retries=RETRIES)
    def measure(self, weights: Weights, items: Sequence[Any], retriever: Any, config: RolloutConfig, seed: int) -> list[Trajectory]:
        with ended_with_its_engine():
            self._hold(weights)
            return roll_out(items, self.engine, retriever, config, seed)

    def _hold(self, weights: Weights) -> None:
        """Called with every batch, because a worker that Ray has restarted holds its first policy again."""
        if isinstance(weights, str):
            if weights != self.held:
                from rollout.policies import load_policy

                self.engine.update_weights(-1, dict(load_policy(weights, dtype=self.dtype).model.named_parameters()))
                self.held = weights
        elif weights.checksum != self.held:
            what = f"policy version {weights.version}"
            buckets = ray.get([bucket.ref for bucket in weights.buckets], timeout=self.deadline_s)
            for number, bucket in enumerate(buckets, 1):
                refuse_corrupt(bucket, f"bucket {number} of {what}")
            self.engine.update_weights(weights.version, unpack_weights(buckets))
            self.held = weights.checksum


class EvaluationWorker(Measures):
    """For `r1-router evaluate`, which has no rollout workers."""

    def __init__(self, policy: str, config: RolloutConfig, on_gpu: bool, dtype: str, deadline_s: float):
        self.dtype, self.deadline_s = dtype, deadline_s
        self.engine, self.held = make_engine(policy, config, dtype, on_gpu), policy
