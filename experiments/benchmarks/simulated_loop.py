"""The whole loop of training with everything that computes simulated: `StepGRPO`, `RolloutWorkers`, `Scoring`, `LearnerGroup` are the real ones.

Rollout workers sleep as long as recorded episodes took and hand these out, reward actors hand out the recorded scores, learner ranks sleep as
long as learning takes. So a laptop can have the driver of a cluster: its work is real, and so are the bytes that travel.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import ray
import torch
from ray.rllib.utils.metrics.metrics_logger import MetricsLogger

from experiments.benchmarks.recorded_episodes import Recorded, distinct
from experiments.benchmarks.simulated_workers import SimulatedGroup, Sleepers
from experiments.iteration_figures import iteration_figures
from learner.config import LearnerConfig
from learner.group import LearnerGroup
from learner.question_ledger import QuestionLedger
from learner.question_source import ShuffledQuestions
from learner.rollout_workers import RolloutWorkers
from learner.step_grpo import StepGRPO
from learner.weight_sender import WeightSender
from learner.worker import MiniBatch
from rollout.config import RolloutConfig
from rollout.records import Question, ScoredTurn, Trajectory
from rollout.timeline import Timeline

WORKERS_PER_NODE = 4
"""As a rollout node of ray_cluster.yaml has GPUs."""
QUESTIONS_PER_WORKER = 8
RANKS_PER_NODE = 4
"""Learner ranks, which learn what the four workers roll out in about the time that these take."""
ROLLED_OUT_PER_S = 6.524
"""Trajectories of one rollout worker: "whole episodes", one core, in the table of docs/rollout.md."""
LEARNED_TURNS_PER_S = 317.2
"""Of one learner rank: "turns of the default world: shared prefix", one core, in the table of docs/learner.md."""
WEIGHT_TENSORS, TENSOR_NUMBERS = 5, 2**18
"""Five tensors of 1 MiB: as many bytes as the tiny policy has."""
PROCESSES = 2
"""That all simulated workers share; so do the ranks, and the reward actors."""
DEADLINE_S = 300.0


class RecordedSleepers(Sleepers):
    """Simulated rollout workers that hand out recorded trajectories. A question's id ends with the place of one."""

    def __init__(self, recorded: Recorded):
        super().__init__()
        gc.disable()  # the other core is to keep up with the driver
        self._recorded = recorded

    def trajectories_of(self, question: Question, policy_version: int) -> list[Trajectory]:
        return [self._recorded.trajectories[place_of(question.id)]]


class RecordedRewards:
    """A reward actor that looks up what it is asked."""

    def __init__(self, recorded: Recorded):
        gc.disable()
        self._scores = {
            trajectory.question.id: turns for trajectory, turns in zip(recorded.trajectories, recorded.scored, strict=True)
        }
        self._asked = 0

    def score(self, trajectories: Sequence[Trajectory]) -> list[ScoredTurn]:
        self._asked += 1
        mark = f"#{id(self)}.{self._asked}"
        return [
            turn
            for number, trajectory in enumerate(trajectories)
            for turn in distinct(self._scores[trajectory.question.id], f"{mark}.{number}")
        ]


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


@dataclass(frozen=True)
class _Call:
    actor: Any
    method: str
    counted: Counter[str] | None = None
    """Bytes of arguments and results, by method, where they are counted."""

    def remote(self, *arguments: Any) -> Any:
        answer = getattr(self.actor, self.method).remote(*arguments)
        if self.counted is not None:
            self.counted[f"{self.method} asked"] += serialized_bytes(arguments)
            self.counted[f"{self.method} answered"] += serialized_bytes(ray.get(answer))
        return answer


class _Rank:
    """One learner rank, as `LearnerGroup` calls it."""

    def __init__(self, actor: Any, counted: Counter[str] | None):
        self.publish_bucket, self.update = _Call(actor, "publish"), _Call(actor, "update", counted)


class _Rewards:
    def __init__(self, actor: Any, counted: Counter[str] | None):
        self.score = _Call(actor, "score", counted)


@dataclass(frozen=True)
class Iteration:
    """What one iteration of the loop took."""

    trajectories: int
    seconds: float
    busy: float
    """CPU seconds of the thread that runs the loop."""
    cpu: float
    """CPU seconds of the driver's process: Ray's own threads, too."""
    phases: dict[str, tuple[float, float]]
    """`push`, `rollout`, `score`, `learn`, `figures` -> (seconds, CPU seconds of the loop's thread)."""


class CpuTimeline(Timeline):
    """Counts the CPU time of the calling thread beside the clock's."""

    def __init__(self) -> None:
        super().__init__()
        self.cpu: Counter[str] = Counter()

    @contextmanager
    def doing(self, name: str) -> Iterator[None]:
        began = time.thread_time()
        with super().doing(name):
            yield
        self.cpu[name] += time.thread_time() - began


class SimulatedLoop(StepGRPO):
    """`StepGRPO` around simulated workers, rewards and learners, without RLlib's set-up. `speed`: latencies are divided by it."""

    def __init__(self, nodes: int, recorded: Recorded, speed: float = 1.0, counted: Counter[str] | None = None):
        workers = nodes * WORKERS_PER_NODE
        learner = LearnerConfig(num_learners=nodes * RANKS_PER_NODE)
        questions = list(simulated_questions(workers * QUESTIONS_PER_WORKER, recorded.shares, speed))
        shared = ray.put(recorded)
        self._rewards = [ray.remote(RecordedRewards).options(num_cpus=0).remote(shared) for _ in range(PROCESSES)]
        self._ranks = [ray.remote(SleepingRanks).options(num_cpus=0, max_concurrency=1000).remote(speed) for _ in range(PROCESSES)]
        self._group = SimulatedGroup(workers, PROCESSES, RecordedSleepers, shared)
        self.config: Any = SimpleNamespace(
            overlap=0, trace=False, rollout=RolloutConfig(), learner=learner, questions_per_iteration=len(questions), sampling_seed=0,
            deadline_s=DEADLINE_S, reward_actors=[_Rewards(self._rewards[i % PROCESSES], counted) for i in range(nodes)],
        )  # fmt: skip
        self.learner_group: Any = object.__new__(LearnerGroup)  # there is no engine to start
        self.learner_group.config, self.learner_group.policy_version, self.learner_group.steps = learner, 0, []
        self.learner_group._ranks = [_Rank(self._ranks[i % PROCESSES], counted) for i in range(nodes * RANKS_PER_NODE)]
        self.questions = QuestionLedger(InOrder(questions))
        self.workers = RolloutWorkers(self._group, QUESTIONS_PER_WORKER, DEADLINE_S)
        self._broadcast = self.ahead = None
        self.trajectories, self.turns, self.timelines = [], [], {}
        self._driver, self._learner = CpuTimeline(), CpuTimeline()
        self.metrics = MetricsLogger(root=True)
        self._iterations = 0

    def iterate(self, searching: bool = False) -> Iteration:
        """`searching`: with Python's search for cyclic garbage, as it was before `no_search_for_cycles` stood around the whole iteration."""
        step: Any = StepGRPO.training_step
        cpu = {name: Counter(line.cpu) for name, line in (("driver", self._driver), ("learner", self._learner))}
        began, thread, process = time.perf_counter(), time.thread_time(), time.process_time()
        step.__wrapped__(self) if searching else step(self)
        reduced = self.metrics.reduce(compile=True)
        seconds = {name: float(value) for name, value in reduced["seconds"].items()}
        figures, figuring = time.perf_counter(), time.thread_time()
        self._iterations += 1
        row = iteration_figures({**reduced, "training_iteration": self._iterations}, self.trajectories, self.turns)
        ended, busy, used = time.perf_counter(), time.thread_time(), time.process_time()
        spent = (self._driver.cpu - cpu["driver"]) + (self._learner.cpu - cpu["learner"])
        phases = {name: (value, spent[name]) for name, value in seconds.items()} | {"figures": (ended - figures, busy - figuring)}
        assert row["trajectories"] == row["returned_questions"] == self.config.questions_per_iteration, "the account of an iteration is wrong"
        return Iteration(row["trajectories"], ended - began, busy - thread, used - process, phases)

    def close(self) -> None:
        self._group.close()
        for actor in (*self._rewards, *self._ranks):
            ray.kill(actor)


class InOrder(ShuffledQuestions):
    """All questions again and again, in their order: neighbours are never the same recorded one."""

    def next(self, n: int) -> list[Any]:
        assert n == len(self.questions)
        return self.questions


def place_of(question_id: str) -> int:
    return int(question_id.rpartition("/")[2])


def serialized_bytes(value: Any) -> int:
    """That Ray would send or store."""
    return ray._private.worker.global_worker.get_serialization_context().serialize(value).total_bytes


def simulated_questions(count: int, shares: Sequence[float], speed: float) -> Iterator[Question]:
    """Their texts are the seconds that they take: of each worker's together as many as its measured rate says, divided by `speed`."""
    together = QUESTIONS_PER_WORKER / ROLLED_OUT_PER_S / speed
    for i in range(count):
        yield Question(f"q{i}/{i % len(shares)}", str(shares[i % len(shares)] * together), ())


def expected_seconds(recorded: Recorded, speed: float = 1.0) -> tuple[float, float]:
    """Of an iteration whose driver takes no time: rolling out, learning."""
    trajectories = WORKERS_PER_NODE * QUESTIONS_PER_WORKER
    rolled_out = QUESTIONS_PER_WORKER / ROLLED_OUT_PER_S
    return rolled_out / speed, trajectories * recorded.turns / (RANKS_PER_NODE * LEARNED_TURNS_PER_S) / speed
