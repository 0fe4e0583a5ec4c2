"""Processes that stand in for rollout workers, reward actors and learner ranks: they sleep, and hand out what was recorded."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import ray
import torch

from experiments.benchmarks.recorded_episodes import Recorded, distinct
from experiments.benchmarks.simulated_workers import Sleepers, sleepers
from learner.config import LearnerConfig
from learner.weight_sender import WeightSender
from rollout.records import Question, ScoredTurn, Trajectory

if TYPE_CHECKING:
    from learner.worker import MiniBatch

LEARNED_TURNS_PER_S = 317.2
"""Of one learner rank: "turns of the default world: shared prefix", one core, in the table of docs/learner.md."""
WEIGHT_TENSORS, TENSOR_NUMBERS = 5, 2**18
"""Five tensors of 1 MiB: as many bytes as the tiny policy has."""
WORKER_PROCESSES = 2
"""That all simulated workers share. The reward actors share one, the learner ranks another one."""


class SimulatedCluster:
    """The processes, for loops of any number of nodes, one after the other. `speed`: latencies are divided by it."""

    def __init__(self, recorded: Recorded, speed: float = 1.0):
        self.recorded, self.speed = recorded, speed
        shared = ray.put(recorded)
        self.workers = [sleepers(RecordedSleepers, shared) for _ in range(WORKER_PROCESSES)]
        self.rewards = ray.remote(RecordedRewards).options(num_cpus=0).remote(shared)
        self.ranks = ray.remote(SleepingRanks).options(num_cpus=0, max_concurrency=1000).remote(speed)

    def close(self) -> None:
        for actor in (*self.workers, self.rewards, self.ranks):
            ray.kill(actor)


class RecordedSleepers(Sleepers):
    """Simulated rollout workers that hand out recorded trajectories. A question's id ends with the place of one."""

    def __init__(self, recorded: Recorded):
        super().__init__()
        gc.disable()  # the other core is to keep up with the driver
        self._recorded = recorded

    def trajectories_of(self, question: Question, policy_version: int) -> list[Trajectory]:
        return [replace(self._recorded.trajectories[place_of(question.id)], question=question)]


class RecordedRewards:
    """A reward actor that looks up what it is asked."""

    def __init__(self, recorded: Recorded):
        gc.disable()
        self._scores = recorded.scored
        self._asked = 0

    def score(self, trajectories: Sequence[Trajectory]) -> list[ScoredTurn]:
        self._asked += 1
        mark = f"#{self._asked}"
        places = enumerate(trajectory.question.id for trajectory in trajectories)
        return [turn for number, question in places for turn in distinct(self._scores[place_of(question)], f"{mark}.{number}")]


class SleepingRanks(WeightSender):
    """Learner ranks that sleep instead of learning: `speed` times as fast as was measured. Rank 0 has weights, which every update changes."""

    def __init__(self, speed: float):
        gc.disable()
        torch.set_num_threads(1)
        self.rank, self.device, self._speed = 0, torch.device("cpu"), speed
        self.tensors = {f"layer {i}": torch.zeros(TENSOR_NUMBERS) for i in range(WEIGHT_TENSORS)}
        self.prepare_sending(LearnerConfig().bucket_bytes, "cpu")

    def gathered(self) -> Iterator[tuple[str, torch.Tensor]]:
        yield from self.tensors.items()

    async def publish(self, number: int) -> Any:
        return self.publish_bucket(number)

    async def nothing(self, number: int) -> None:
        """What ranks without weights publish."""

    async def update(self, mini_batches: list[MiniBatch]) -> list[dict[str, float]]:
        for tensor in self.tensors.values():
            tensor[0] += 1
        return [await self._step(mini_batch) for mini_batch in mini_batches]

    async def _step(self, mini_batch: MiniBatch) -> dict[str, float]:
        rows = [row for micro_batch in mini_batch.micro_batches for row in micro_batch]
        seconds = sum(len(row.responses) for row in rows) / LEARNED_TURNS_PER_S / self._speed
        await asyncio.sleep(seconds)
        tokens = float(sum(len(response.ids) for row in rows for response in row.responses))
        counted = {"tokens": tokens, "row_tokens": float(sum(row.length for row in rows)), "seconds": seconds, "ended": time.time()}
        return counted | dict.fromkeys(("mismatch", "mismatch_max", "mismatch_k3", "ratio_max", "loss", "grad_norm"), 0.0)


def place_of(question_id: str) -> int:
    return int(question_id.rpartition("/")[2])
