"""The one thread of a router replica that touches the engine: questions come in through a queue, what happens goes out to whoever asked.

All questions that are under way share the engine, so concurrent requests are generated side by side without anybody gathering batches.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Any

from experiments.serving.jobs import PolicyReference, RouteJob
from rollout.config import RolloutConfig
from rollout.episode import PolicyEngine
from rollout.episode_pool import EpisodeEvent, EpisodePool
from rollout.records import Question
from rollout.searches import Searcher

WAIT_S = 0.005
"""How long a tick waits for knowledge bases when there is nothing to generate: a new question waits as long to be seen."""
LET_GO_AFTER_S = 5.0
"""How long a policy that was replaced stays at least: a question that was on its way to it still gets there."""


class EngineFailedError(RuntimeError):
    """The engine raised: the questions that were under way are lost, those that follow get a new pool."""


@dataclass
class _Asker:
    """Who waits for the events of one episode."""

    job: RouteJob
    tell: Callable[[EpisodeEvent | Exception], Any]
    ticket: int | None = None
    gone: bool = False


class EpisodeThread:
    """Policies are held side by side while a newer one takes over: questions finish on the version that they began with."""

    def __init__(self, rollout: RolloutConfig, load: Callable[[PolicyReference], PolicyEngine], searcher: Searcher):
        """`load` takes seconds; it is called outside of the thread, which goes on meanwhile."""
        self._rollout, self._load, self._searcher = rollout, load, searcher
        self._pools: dict[PolicyReference, EpisodePool] = {}
        self._askers: dict[PolicyReference, dict[int, _Asker]] = {}
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._loading = threading.Lock()
        self._newest: PolicyReference | None = None
        self._replaced = 0.0
        self._thread = threading.Thread(target=self._run, name="episodes", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def hold(self, policy: PolicyReference) -> None:
        """Load the policy unless it is held; blocks. The one asked for last stays, older ones go when their questions have ended."""
        with self._loading:
            if policy not in self._pools:
                pool = self._pool(self._load(policy))
                self._askers[policy] = {}
                self._pools[policy] = pool
            if policy != self._newest:
                self._newest, self._replaced = policy, time.monotonic()
        self._inbox.put(lambda: None)  # wakes the thread up: there may be one to let go

    async def run(self, job: RouteJob) -> AsyncGenerator[EpisodeEvent]:
        """What happens to the question, up to `finished` or `failed`. A caller that goes away frees its place in the batch.
        Raises EngineFailedError."""
        if job.policy not in self._pools:  # a replica that began after another policy had taken over
            await asyncio.to_thread(self.hold, job.policy)
        events: asyncio.Queue[EpisodeEvent | Exception] = asyncio.Queue()
        loop, end = asyncio.get_running_loop(), time.monotonic() + job.deadline_s
        asker = _Asker(job, lambda event: loop.call_soon_threadsafe(events.put_nowait, event))
        self._inbox.put(lambda: self._add(asker, end))
        try:
            while True:
                event = await events.get()
                if isinstance(event, Exception):
                    raise event
                yield event
                if event.kind in ("finished", "failed"):
                    return
        finally:
            asker.gone = True
            self._inbox.put(lambda: self._give_up(asker))

    def close(self) -> None:
        self._inbox.put(None)
        self._thread.join(timeout=10)

    def _pool(self, engine: PolicyEngine) -> EpisodePool:
        return EpisodePool(engine, self._searcher, join="as_they_come")

    # In the thread ---------------------------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while self._heard():
            for policy, pool in list(self._pools.items()):
                if pool.unfinished:
                    self._advance(policy, pool)
            self._let_go()

    def _heard(self) -> bool:
        """Do what the inbox says; with nothing under way, wait for it. False: it says that this is the end."""
        while True:
            idle = not any(pool.unfinished for pool in list(self._pools.values()))
            try:
                command = self._inbox.get(block=idle, timeout=LET_GO_AFTER_S if len(self._pools) > 1 else None)
            except queue.Empty:
                return True
            if command is None:
                for pool in self._pools.values():
                    pool.close()
                return False
            command()

    def _add(self, asker: _Asker, end: float) -> None:
        if asker.gone:
            return
        job, pool = asker.job, self._pools.get(asker.job.policy)
        if pool is None:
            asker.tell(EngineFailedError(f"policy version {job.policy.version} was replaced"))
            return
        question = Question(job.request_id, job.question, answers=(), image=job.image)
        left = max(0.0, end - time.monotonic())
        asker.ticket = pool.add(question, job.rollout(self._rollout), job.seed, kbs=job.kbs, deadline_s=left)
        self._askers[job.policy][asker.ticket] = asker

    def _give_up(self, asker: _Asker) -> None:
        askers: dict[int, _Asker] = self._askers.get(asker.job.policy, {})
        if asker.ticket is not None and asker.ticket in askers:
            del askers[asker.ticket]
            self._pools[asker.job.policy].cancel(asker.ticket)

    def _advance(self, policy: PolicyReference, pool: EpisodePool) -> None:
        askers = self._askers[policy]
        try:
            events = pool.advance(WAIT_S)
        except Exception as error:  # whatever it was: those who wait must hear of it, and the thread serves the others
            pool.close()
            self._pools[policy] = self._pool(pool.engine)
            for asker in askers.values():
                asker.tell(EngineFailedError(f"{type(error).__name__}: {error}"))
            askers.clear()
            return
        for event in events:
            if event.ticket not in askers:  # given up
                continue
            askers[event.ticket].tell(event)
            if event.kind in ("finished", "failed"):
                del askers[event.ticket]

    def _let_go(self) -> None:
        """Of policies that were replaced, once nobody waits for them any more."""
        if len(self._pools) == 1 or time.monotonic() < self._replaced + LET_GO_AFTER_S:
            return
        for policy, pool in list(self._pools.items()):
            if policy != self._newest and not pool.unfinished:
                pool.close()
                del self._pools[policy], self._askers[policy]
