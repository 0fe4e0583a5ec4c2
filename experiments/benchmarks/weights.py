"""Speed of sending weights to rollout workers, against a memcpy in one process."""

from __future__ import annotations

import statistics
import time
import timeit
from collections.abc import Iterator
from typing import Any

import numpy as np
import ray
import torch

from experiments.benchmarks.bench_results import BenchResult
from experiments.benchmarks.simulated_workers import SimulatedGroup
from experiments.cluster.ray_session import start_ray
from experiments.config import ClusterConfig, TrainConfig
from learner.config import LearnerConfig
from learner.learner_group import LearnerGroup
from learner.ranks.weight_sender import WeightSender
from learner.rollout_workers import RolloutWorkers
from rollout.weight_buckets import Inbox, seal

RECEIVERS = 4
TENSOR_BYTES = 2**24
"""Of one tensor of the model that is broadcast."""
REPEATS = 5


def weight_rows(quick: bool) -> Iterator[BenchResult]:
    """One sender and four receivers on this machine, all buckets different from the last version, memory warm on both sides."""
    size = 64 * 2**20 if quick else 10**9
    copied = memcpy_bytes_per_second(size)
    with start_ray(TrainConfig(ray=ClusterConfig(num_cpus=RECEIVERS + 1, object_store_mb=4 * size // 2**20 + 200))):
        tensors = max(1, size // TENSOR_BYTES)
        sender: Any = ray.remote(Sender).remote(tensors)
        receivers: list[Any] = [ray.remote(Receiver).remote(tensors) for _ in range(RECEIVERS)]
        workers = RolloutWorkers(SimulatedGroup(dict(enumerate(receivers, 1))), chunk=1, deadline_s=300)
        learner = object.__new__(LearnerGroup)  # only what `publish` needs: there is no engine to start
        learner.config, learner.ranks = LearnerConfig(), [sender]
        seconds = []
        for version in range(2 + REPEATS):  # the object store holds two versions: the third one reuses memory
            ray.get(sender.learn.remote())
            began = time.perf_counter()
            learner.policy_version = version
            workers.push(version, learner.publish())
            seconds.append(time.perf_counter() - began)
        sums = ray.get([actor.first.remote() for actor in (sender, *receivers)])
        assert len(set(sums)) == 1, f"the receivers hold other weights than the sender: {sums}"
    took, total = statistics.median(seconds[2:]), tensors * TENSOR_BYTES
    name = f"weights: {total / 1e6:,.0f} MB to {RECEIVERS} workers, warm"
    landed = RECEIVERS * total / took
    against = f"{name}: bytes landed in all their parameters, against one process's memcpy"
    yield BenchResult.of(against, landed / 1e9, "GB/s", copied / 1e9, 0.5)
    yield BenchResult.of(f"{name}: until the last one holds them", took, "s")
    yield BenchResult.of(f"{name}: the first time, memory cold", seconds[0], "s")


def memcpy_bytes_per_second(size: int) -> float:
    source, target = np.ones(size, np.uint8), np.ones(size, np.uint8)
    return size / statistics.median(timeit.repeat(lambda: np.copyto(target, source), number=1, repeat=REPEATS))


class Sender(WeightSender):
    """A learner's side, without an engine."""

    def __init__(self, tensors: int):
        torch.set_num_threads(1)
        self.rank, self.device = 0, torch.device("cpu")
        self.tensors = {f"layer {i}": torch.ones(TENSOR_BYTES // 4) * i for i in range(tensors)}
        self.prepare_sending(LearnerConfig().bucket_bytes, "cpu")

    def learn(self) -> None:
        for tensor in self.tensors.values():
            tensor[0] += 1

    def gathered(self) -> Iterator[tuple[str, torch.Tensor]]:
        yield from self.tensors.items()

    def first(self) -> float:
        return sum(float(tensor[0]) for tensor in self.tensors.values())


class Receiver:
    """A rollout worker's side: its inbox, and a copy into parameters that stay where they are."""

    def __init__(self, tensors: int):
        torch.set_num_threads(1)
        self.parameters = {f"layer {i}": torch.ones(TENSOR_BYTES // 4) for i in range(tensors)}
        self.inbox = Inbox()

    def receive(self, number: int, bucket: Any) -> str:
        self.inbox.take(number, bucket)
        return ""

    def use_weights(self, version: int, checksums: list[int]) -> tuple[int, int]:
        for name, tensor in self.inbox.tensors(version, checksums).items():
            self.parameters[name].copy_(tensor)
        return version, seal(version, checksums)

    def first(self) -> float:
        return sum(float(tensor[0]) for tensor in self.parameters.values())
