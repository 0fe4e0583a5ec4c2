"""Rollout workers that sleep instead of sampling, to measure the driver.

Many of them share a process, so that a laptop can simulate a cluster; each is called through Ray like a real one.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import cycle
from typing import Any

import numpy as np
import ray

from rollout.records import Question, State, Trajectory, Turn, TurnGroup, TurnKind
from rollout.roll_out import WorkReport
from rollout.trajectory_summary import summary_of
from rollout.weight_buckets import seal

PROMPT_TOKENS, RESPONSE_TOKENS, SIBLINGS = 160, 32, 8
"""Size of a made-up trajectory, as in the default run."""
KINDS: tuple[TurnKind, ...] = ("plan", "answer", "plan", "answer", "final")
MADE_UP = 16
"""Different trajectories in a process; they are reused for all questions."""


def made_up_trajectory(question: Question, seed: int = 0) -> Trajectory:
    random = np.random.default_rng(seed)
    groups = []
    for kind in KINDS:
        state = State(kind, random.integers(0, 900, PROMPT_TOKENS).astype(np.int32), None, question)
        responses = random.integers(0, 900, (SIBLINGS, RESPONSE_TOKENS)).astype(np.int32)
        logprobs = np.zeros(RESPONSE_TOKENS, np.float32)
        groups.append(TurnGroup(state, tuple(Turn(state.kind, ids, logprobs, "stop", 0, "text") for ids in responses)))
    return Trajectory(question, (), groups[-1].chosen, "answer", tuple(groups))


class Sleepers:
    """Several simulated workers; `sample` and `go_on` as in `RolloutWorker`, with the worker's index as first argument. A
    question takes as many seconds as its text says; the questions of a worker run at the same time."""

    def __init__(self) -> None:
        gc.disable()  # its pauses would delay the driver
        self._version: dict[int, int] = {}
        self._began: dict[int, tuple[float, list[Question], set[int]]] = {}
        self._made_up = cycle([made_up_trajectory(Question(f"made-up-{i}", "what?", ("a",)), i) for i in range(MADE_UP)])

    async def receive(self, worker: int, number: int, bucket: Any) -> str:
        return "127.0.0.1"

    async def use_weights(self, worker: int, version: int, checksums: Sequence[int]) -> tuple[int, int]:
        self._version[worker] = version
        return version, seal(version, checksums)

    @ray.method(num_returns=2)
    async def sample(
        self, worker: int, questions: Sequence[Question], version: int, overrides: Any, seed: int, seconds: float, repeats: Any = None
    ) -> tuple[WorkReport, list[Trajectory]]:
        self._began[worker] = time.monotonic(), list(questions), set(range(len(questions)))
        return await self._work(worker, version, seconds)

    @ray.method(num_returns=2)
    async def go_on(self, worker: int, version: int, seconds: float) -> tuple[WorkReport, list[Trajectory]]:
        return await self._work(worker, version, seconds)

    async def _work(self, worker: int, version: int, seconds: float) -> tuple[WorkReport, list[Trajectory]]:
        began, questions, left = self._began[worker]
        last = began + max((float(questions[place].text) for place in left), default=0.0)
        await asyncio.sleep(min(seconds, max(0.0, last - time.monotonic())))
        now = time.monotonic() + 0.001  # a sleep may be short of its time
        done = [place for place in sorted(left) if began + float(questions[place].text) <= now]
        left.difference_update(done)
        trajectories = [replace(next(self._made_up), question=questions[place]) for place in done]
        finished = [(place, [summary_of(trajectory)]) for place, trajectory in zip(done, trajectories, strict=True)]
        return WorkReport(worker, self._version[worker], finished, len(left)), trajectories


@dataclass(frozen=True)
class SimulatedCall:
    """A method of one of the workers or ranks that share an actor."""

    actor: Any
    name: str
    number: int

    def remote(self, *arguments: Any) -> Any:
        return getattr(self.actor, self.name).remote(self.number, *arguments)


class SimulatedHandle:
    """Stands in for an actor handle: `methods` of the actor get `number` as first argument."""

    def __init__(self, actor: Any, number: int, methods: Sequence[str]):
        for name in methods:
            setattr(self, name, SimulatedCall(actor, name, number))


def sleepers() -> Any:
    return ray.remote(Sleepers).options(num_cpus=0, max_concurrency=1000).remote()


def sleeping_workers(workers: int, processes: Sequence[Any]) -> SimulatedGroup:
    """`processes`: handles of `Sleepers` that the workers share."""
    methods = ("receive", "use_weights", "sample", "go_on")
    return SimulatedGroup({i: SimulatedHandle(processes[i % len(processes)], i, methods) for i in range(1, workers + 1)})


class SimulatedGroup:
    """Stands in for an `EnvRunnerGroup` and its worker manager; all workers are healthy."""

    def __init__(self, handles: Mapping[int, Any]):
        self._handles = dict(handles)
        self._worker_manager = self

    def actors(self) -> dict[int, Any]:
        return self._handles

    def is_actor_healthy(self, worker: int) -> bool:
        return True

    def set_actor_state(self, worker: int, healthy: bool) -> None:
        pass
