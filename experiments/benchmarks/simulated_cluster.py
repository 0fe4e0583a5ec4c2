"""The training loop with simulated workers: `StepGRPO`, `RolloutWorkers`, `RewardCalls` and `LearnerGroup` are the real classes.

Rollout workers sleep and return made-up episodes, reward actors draw random rewards, learner ranks fetch their turns and sleep as long as
an update takes. So a laptop can measure the driver of a cluster: its work and the bytes that it moves are real.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import ray
import torch
from ray.rllib.utils.metrics.metrics_logger import MetricsLogger

from experiments.benchmarks.simulated_workers import KINDS, SIBLINGS, SimulatedHandle, sleepers, sleeping_workers
from experiments.run.metrics_line import metrics_line
from learner.config import LearnerConfig
from learner.learner_group import LearnerGroup
from learner.objective.batch_plan import PlannedMiniBatch
from learner.question_ledger import QuestionLedger, ShuffledQuestions
from learner.ranks.weight_sender import WeightSender
from learner.rollout_workers import RolloutWorkers
from learner.step_grpo import StepGRPO
from rewards.scored_summary import ScoredSummary
from rollout.config import RolloutConfig
from rollout.records import Question, ScoredTurn, Trajectory, TurnReward
from rollout.timeline import Timeline

WORKERS_PER_NODE = RANKS_PER_NODE = 4
"""Of a simulated node, a machine with eight GPUs. Learning takes its ranks about as long as rolling out takes its workers."""
QUESTIONS_PER_WORKER = 8
ROLLED_OUT_PER_S = 6.524
"""Trajectories of one rollout worker, one core; named in docs/11_cluster.md."""
LEARNED_TURNS_PER_S = 317.2
"""Of one learner rank: "turns of the default world: shared prefix", one core, in the table of docs/07_learner.md."""
WEIGHT_TENSORS, TENSOR_NUMBERS = 5, 2**18
"""Five tensors of 1 MiB: as many bytes as the tiny policy has."""
WORKER_PROCESSES = 2
"""Shared by all simulated rollout workers. The reward actors share one process, the learner ranks another one."""
DEADLINE_S = 300.0


class SimulatedCluster:
    """The shared processes of simulated loops, of any number of nodes, run in turn. `speed`: all latencies are divided by it."""

    def __init__(self, speed: float = 1.0):
        self.speed = speed
        self.workers = [sleepers() for _ in range(WORKER_PROCESSES)]
        self.rewards = ray.remote(RandomRewards).options(num_cpus=0).remote()
        self.ranks = ray.remote(SleepingRanks).options(num_cpus=0, max_concurrency=1000).remote(speed)

    def close(self) -> None:
        for actor in (*self.workers, self.rewards, self.ranks):
            ray.kill(actor)


class RandomRewards:
    """A reward actor that draws random rewards, so that every group has variance."""

    def __init__(self) -> None:
        gc.disable()
        self._random = np.random.default_rng(0)
        self._scored = 0

    @ray.method(num_returns=2)
    def score_references(
        self, order: Sequence[tuple[int, int]], with_parts: bool, *trajectories: Sequence[Trajectory]
    ) -> tuple[ScoredSummary, list[ScoredTurn]]:
        turns: list[ScoredTurn] = []
        for number, place in order:
            self._scored += 1
            turns += scored_at_random(trajectories[number][place], self._scored, self._random)
        return ScoredSummary.of(turns, with_parts), turns


def scored_at_random(trajectory: Trajectory, number: int, random: np.random.Generator) -> Iterator[ScoredTurn]:
    """Made-up trajectories are reused. `number` in the state keys keeps two uses of one apart: equal keys would form one group."""
    episode = f"{trajectory.question.id}#{number}"
    for group in trajectory.groups:
        rewards = random.random(len(group.turns)).tolist()
        for turn, reward in zip(group.turns, rewards, strict=True):
            key, prompt = f"{group.state.key}#{number}", group.state.prompt_ids
            yield ScoredTurn(key, prompt, None, turn, TurnReward(reward), episode, 1.0, episode)


class SleepingRanks(WeightSender):
    """Learner ranks that sleep instead of learning, `speed` times as fast as was measured. Every update changes the weights of rank 0.
    Rank 0 fetches the turns for all ranks."""

    def __init__(self, speed: float):
        gc.disable()
        torch.set_num_threads(1)
        self.rank, self.device, self._speed = 0, torch.device("cpu"), speed
        self.tensors = {f"layer {i}": torch.zeros(TENSOR_NUMBERS) for i in range(WEIGHT_TENSORS)}
        self.prepare_sending(LearnerConfig().bucket_bytes, "cpu")
        self._planned: dict[int, list[PlannedMiniBatch]] = {}
        self._turns: list[ScoredTurn] = []

    def gathered(self) -> Iterator[tuple[str, torch.Tensor]]:
        yield from self.tensors.items()

    async def publish(self, rank: int, number: int) -> Any:
        return None if rank else self.publish_bucket(number)

    async def fetch(self, rank: int, planned: list[PlannedMiniBatch], chunks: Sequence[tuple[ray.ObjectRef, int]]) -> None:
        self._planned[rank] = planned
        if rank == 0:
            self._turns = [turn for ref, _ in chunks for turn in await ref]

    async def update(self, rank: int, mini_batches: None = None) -> list[dict[str, float]]:
        for tensor in self.tensors.values():
            tensor[0] += 1
        return [await self._step(mini_batch) for mini_batch in self._planned.pop(rank)]

    async def _step(self, mini_batch: PlannedMiniBatch) -> dict[str, float]:
        turns = [turn for batch in mini_batch.rows for row in batch for turn in row]
        seconds = len(turns) / LEARNED_TURNS_PER_S / self._speed
        await asyncio.sleep(seconds)
        tokens = float(sum(len(self._turns[turn].turn.response_ids) for turn in turns))
        counted = {"tokens": tokens, "row_tokens": tokens, "seconds": seconds, "ended": time.time()}
        return counted | dict.fromkeys(("mismatch", "mismatch_max", "mismatch_k3", "mismatch_tv", "ratio_max", "loss", "grad_norm"), 0.0)


@dataclass(frozen=True)
class Iteration:
    """What one iteration of the loop took."""

    trajectories: int
    seconds: float
    busy: float
    """CPU seconds of the thread that runs the loop."""
    phases: dict[str, tuple[float, float]]
    """`push`, `rollout`, `score`, `learn`, `metrics` -> (seconds, CPU seconds of the loop's thread)."""
    read: int
    written: int
    """Bytes that the driver deserialised, and serialised."""


class CpuTimeline(Timeline):
    """Also counts the CPU seconds of the calling thread."""

    def __init__(self) -> None:
        super().__init__()
        self.cpu: dict[str, float] = defaultdict(float)

    @contextmanager
    def doing(self, name: str) -> Iterator[None]:
        began = time.thread_time()
        with super().doing(name):
            yield
        self.cpu[name] += time.thread_time() - began


class SimulatedLoop(StepGRPO):
    """`StepGRPO` around simulated workers, rewards and learners, without RLlib's set-up."""

    def __init__(self, nodes: int, cluster: SimulatedCluster):
        workers, ranks = nodes * WORKERS_PER_NODE, nodes * RANKS_PER_NODE
        learner = LearnerConfig(num_learners=ranks)
        questions = list(simulated_questions(workers * QUESTIONS_PER_WORKER, cluster.speed))
        self.config: Any = SimpleNamespace(
            overlap=0, trace=False, rollout=RolloutConfig(), learner=learner, questions_per_iteration=len(questions), sampling_seed=0,
            deadline_s=DEADLINE_S, reward_actors=[cluster.rewards] * nodes,
        )  # fmt: skip
        self.learner_group: Any = object.__new__(LearnerGroup)  # there is no engine to start
        self.learner_group.config, self.learner_group.policy_version, self.learner_group.steps = learner, 0, []
        self.learner_group.ranks = [SimulatedRank(cluster.ranks, rank) for rank in range(ranks)]
        self.questions = QuestionLedger(InOrder(questions))
        self.workers = RolloutWorkers(sleeping_workers(workers, cluster.workers), QUESTIONS_PER_WORKER, DEADLINE_S)
        self._broadcast = self.ahead = None
        self._loop, self._learning = CpuTimeline(), CpuTimeline()
        self._driver, self._learner = self._loop, self._learning
        self.metrics = MetricsLogger(root=True)
        self._iterations = 0

    def iterate(self) -> Iteration:
        before = {**self._loop.cpu, **self._learning.cpu}
        with counted_bytes() as carried:
            began, thread = time.perf_counter(), time.thread_time()
            self.training_step()
            reduced = self.metrics.reduce(compile=True)
            seconds = {name: float(value) for name, value in reduced["seconds"].items()}
            metrics, measuring = time.perf_counter(), time.thread_time()
            self._iterations += 1
            row = metrics_line({**reduced, "training_iteration": self._iterations})
            ended, busy = time.perf_counter(), time.thread_time()
        spent = {name: value - before.get(name, 0.0) for name, value in {**self._loop.cpu, **self._learning.cpu}.items()}
        phases = {name: (value, spent[name]) for name, value in seconds.items()} | {"metrics": (ended - metrics, busy - measuring)}
        assert row["trajectories"] == row["returned_questions"] == self.config.questions_per_iteration
        return Iteration(row["trajectories"], ended - began, busy - thread, phases, carried["read"], carried["written"])


class SimulatedRank(SimulatedHandle):
    def __init__(self, actor: Any, rank: int):
        super().__init__(actor, rank, ("publish", "fetch", "update"))
        self.publish_bucket: Any = self.publish  # type: ignore[attr-defined]


class InOrder(ShuffledQuestions):
    """Every batch is all questions, in their order."""

    def next(self, n: int) -> list[Any]:
        assert n == len(self.questions)
        return self.questions


@contextmanager
def counted_bytes() -> Iterator[dict[str, int]]:
    """Counts the bytes that this process serialises and deserialises for Ray in the block: arguments, results, puts and gets."""
    context = ray._private.worker.global_worker.get_serialization_context()
    serialize, deserialize = context.serialize, context.deserialize_objects
    counted = {"read": 0, "written": 0}

    def counting_serialize(value: Any) -> Any:
        found = serialize(value)
        counted["written"] += found.total_bytes
        return found

    def counting_deserialize(objects: Any, *others: Any) -> Any:
        counted["read"] += sum(len(found.data) for found in objects if found.data is not None)
        return deserialize(objects, *others)

    context.serialize, context.deserialize_objects = counting_serialize, counting_deserialize
    try:
        yield counted
    finally:
        del context.serialize, context.deserialize_objects


def simulated_questions(count: int, speed: float) -> Iterator[Question]:
    """Questions whose text is their duration in seconds: a worker finishes them at its measured rate times `speed`."""
    for i in range(count):
        yield Question(f"q{i}", str((i % QUESTIONS_PER_WORKER + 1) / ROLLED_OUT_PER_S / speed), ())


def expected_seconds(speed: float = 1.0) -> tuple[float, float]:
    """(rollout, learning) of an iteration whose driver takes no time."""
    turns = WORKERS_PER_NODE * QUESTIONS_PER_WORKER * len(KINDS) * SIBLINGS
    return QUESTIONS_PER_WORKER / ROLLED_OUT_PER_S / speed, turns / (RANKS_PER_NODE * LEARNED_TURNS_PER_S) / speed
