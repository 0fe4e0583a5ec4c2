"""The whole loop of training with everything that computes simulated: `StepGRPO`, `RolloutWorkers`, `Scoring`, `LearnerGroup` are the real ones.

Rollout workers sleep as long as recorded episodes took and hand these out, reward actors hand out the recorded scores, learner ranks sleep as
long as learning takes. So a laptop can have the driver of a cluster: its work is real, and so are the bytes that travel.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import ray
from ray.rllib.utils.metrics.metrics_logger import MetricsLogger

from experiments.benchmarks.recorded_episodes import Recorded
from experiments.benchmarks.simulated_cluster import LEARNED_TURNS_PER_S, SimulatedCluster
from experiments.benchmarks.simulated_workers import SimulatedGroup
from experiments.iteration_figures import iteration_figures
from learner.config import LearnerConfig
from learner.group import LearnerGroup
from learner.question_ledger import QuestionLedger
from learner.question_source import ShuffledQuestions
from learner.rollout_workers import RolloutWorkers
from learner.step_grpo import StepGRPO
from rollout.config import RolloutConfig
from rollout.records import Question
from rollout.timeline import Timeline

WORKERS_PER_NODE = 4
"""Of a simulated node: a machine with four GPUs."""
QUESTIONS_PER_WORKER = 8
RANKS_PER_NODE = 4
"""Learner ranks, which learn what the four workers roll out in about the time that these take."""
ROLLED_OUT_PER_S = 6.524
"""Trajectories of one rollout worker: "whole episodes", one core, in the table of docs/rollout.md."""
DEADLINE_S = 300.0


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
    """One learner rank, as `LearnerGroup` calls it. Only the first one has weights to publish."""

    def __init__(self, actor: Any, counted: Counter[str] | None, rank: int):
        self.publish_bucket = _Call(actor, "nothing" if rank else "publish")
        self.update = _Call(actor, "update", counted)


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
        self.cpu: dict[str, float] = defaultdict(float)

    @contextmanager
    def doing(self, name: str) -> Iterator[None]:
        began = time.thread_time()
        with super().doing(name):
            yield
        self.cpu[name] += time.thread_time() - began


class SimulatedLoop(StepGRPO):
    """`StepGRPO` around simulated workers, rewards and learners, without RLlib's set-up."""

    def __init__(self, nodes: int, cluster: SimulatedCluster, counted: Counter[str] | None = None):
        workers, ranks = nodes * WORKERS_PER_NODE, nodes * RANKS_PER_NODE
        learner = LearnerConfig(num_learners=ranks)
        questions = list(simulated_questions(workers * QUESTIONS_PER_WORKER, cluster.recorded.shares, cluster.speed))
        self.config: Any = SimpleNamespace(
            overlap=0, trace=False, rollout=RolloutConfig(), learner=learner, questions_per_iteration=len(questions), sampling_seed=0,
            deadline_s=DEADLINE_S, reward_actors=[_Rewards(cluster.rewards, counted)] * nodes,
        )  # fmt: skip
        self.learner_group: Any = object.__new__(LearnerGroup)  # there is no engine to start
        self.learner_group.config, self.learner_group.policy_version, self.learner_group.steps = learner, 0, []
        self.learner_group._ranks = [_Rank(cluster.ranks, counted, rank) for rank in range(ranks)]
        self.questions = QuestionLedger(InOrder(questions))
        self.workers = RolloutWorkers(SimulatedGroup(workers, cluster.workers), QUESTIONS_PER_WORKER, DEADLINE_S)
        self._broadcast = self.ahead = None
        self.trajectories, self.turns, self.dropped, self.timelines = [], [], [], {}
        self._loop, self._learning = CpuTimeline(), CpuTimeline()
        self._driver, self._learner = self._loop, self._learning
        self.metrics = MetricsLogger(root=True)
        self._iterations = 0

    def iterate(self, searching: bool = False) -> Iteration:
        """`searching`: with Python's search for cyclic garbage, as it was before `no_search_for_cycles` stood around the whole iteration."""
        step: Any = StepGRPO.training_step
        before = {**self._loop.cpu, **self._learning.cpu}
        began, thread, process = time.perf_counter(), time.thread_time(), time.process_time()
        step.__wrapped__(self) if searching else step(self)
        reduced = self.metrics.reduce(compile=True)
        seconds = {name: float(value) for name, value in reduced["seconds"].items()}
        figures, figuring = time.perf_counter(), time.thread_time()
        self._iterations += 1
        row = iteration_figures({**reduced, "training_iteration": self._iterations}, self.trajectories, self.turns)
        ended, busy, used = time.perf_counter(), time.thread_time(), time.process_time()
        spent = {name: value - before.get(name, 0.0) for name, value in {**self._loop.cpu, **self._learning.cpu}.items()}
        phases = {name: (value, spent[name]) for name, value in seconds.items()} | {"figures": (ended - figures, busy - figuring)}
        assert row["trajectories"] == row["returned_questions"] == self.config.questions_per_iteration, (
            "the account of an iteration is wrong"
        )
        return Iteration(row["trajectories"], ended - began, busy - thread, used - process, phases)


class InOrder(ShuffledQuestions):
    """All questions again and again, in their order: neighbours are never the same recorded one."""

    def next(self, n: int) -> list[Any]:
        assert n == len(self.questions)
        return self.questions


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
