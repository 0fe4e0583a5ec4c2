"""Rollout workers that sleep instead of sampling: what is left is the work of the driver.

Many of them share a process, so that a laptop can simulate a cluster; each is called through Ray like a real one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray

from rollout.episode_run import Worked, WorkReport
from rollout.records import Question, State, Trajectory, Turn, TurnGroup
from rollout.weights import seal

WORKERS_PER_PROCESS = 32
PROMPT_TOKENS, RESPONSE_TOKENS, TURNS, SIBLINGS = 160, 32, 5, 8
"""Of a simulated trajectory: like one of the default run."""


def trajectory_of(question: Question, policy_version: int) -> Trajectory:
    """Made up, of the size of a real one."""
    random = np.random.default_rng(len(question.id))
    groups = []
    for kind in ("plan", "answer", "plan", "answer", "final")[:TURNS]:
        state = State(kind, random.integers(0, 900, PROMPT_TOKENS).astype(np.int32), None, question)  # type: ignore[arg-type]
        turns = tuple(
            Turn(state.kind, random.integers(0, 900, RESPONSE_TOKENS).astype(np.int32), np.zeros(RESPONSE_TOKENS, np.float32), "stop",
                 policy_version, "text")
            for _ in range(SIBLINGS)
        )  # fmt: skip
        groups.append(TurnGroup(state, turns))
    return Trajectory(question, (), groups[-1].chosen, "answer", tuple(groups))


class Sleepers:
    """Several simulated workers; `begin` and `go_on` as in `RolloutWorker`, with the worker's index in front.

    A question takes as many seconds as its text says, and the questions of a worker go on side by side.
    """

    def __init__(self) -> None:
        self._version: dict[int, int] = {}
        self._began: dict[int, tuple[float, list[Question], set[int]]] = {}

    def trajectories_of(self, question: Question, policy_version: int) -> list[Trajectory]:
        return [trajectory_of(question, policy_version)]

    async def receive(self, worker: int, number: int, bucket: Any) -> str:
        return "127.0.0.1"

    async def use_weights(self, worker: int, version: int, checksums: Sequence[int]) -> tuple[int, int]:
        self._version[worker] = version
        return version, seal(version, checksums)

    async def begin(self, worker: int, questions: Sequence[Question], version: int, overrides: Any, seed: int, seconds: float) -> Worked:
        self._began[worker] = time.monotonic(), list(questions), set(range(len(questions)))
        return await self.go_on(worker, version, seconds)

    async def go_on(self, worker: int, version: int, seconds: float) -> Worked:
        began, questions, left = self._began[worker]
        last = began + max((float(questions[place].text) for place in left), default=0.0)
        await asyncio.sleep(min(seconds, max(0.0, last - time.monotonic())))
        now = time.monotonic() + 0.001  # a sleep may be short of its time
        done = [place for place in sorted(left) if began + float(questions[place].text) <= now]
        left.difference_update(done)
        finished = [(place, self.trajectories_of(questions[place], version)) for place in done]
        return Worked(finished, len(left), WorkReport(worker, self._version[worker], 0.0))


@dataclass(frozen=True)
class _Method:
    actor: Any
    worker: int
    name: str

    def remote(self, *arguments: Any) -> Any:
        return getattr(self.actor, self.name).remote(self.worker, *arguments)


class _Handle:
    """One simulated worker, as `RolloutWorkers` calls it."""

    def __init__(self, actor: Any, worker: int):
        self.receive, self.use_weights = _Method(actor, worker, "receive"), _Method(actor, worker, "use_weights")
        self.begin, self.go_on = _Method(actor, worker, "begin"), _Method(actor, worker, "go_on")


def sleepers(kind: type[Sleepers] = Sleepers, *arguments: Any) -> Any:
    """A process for simulated workers."""
    return ray.remote(kind).options(num_cpus=0, max_concurrency=1000).remote(*arguments)


class SimulatedGroup:
    """Stands in for an `EnvRunnerGroup`, and for its register of workers."""

    def __init__(self, workers: int, processes: Sequence[Any] = ()):
        """`processes`: handles of `Sleepers` that share them, and that live on; none: new ones, each for at most 32."""
        self._own = [] if processes else [sleepers() for _ in range(-(-workers // WORKERS_PER_PROCESS))]
        actors = processes or self._own
        self._handles = {index: _Handle(actors[index % len(actors)], index) for index in range(1, workers + 1)}
        self._worker_manager = self

    def actors(self) -> dict[int, _Handle]:
        return self._handles

    def is_actor_healthy(self, worker: int) -> bool:
        return True

    def set_actor_state(self, worker: int, healthy: bool) -> None:
        pass

    def close(self) -> None:
        for actor in self._own:
            ray.kill(actor)
