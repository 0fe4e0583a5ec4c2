"""Two deployments: `Router`, whose replicas hold the policy and answer questions, and `KnowledgeBases`, which owns the retrieval actors."""

from __future__ import annotations

import asyncio
import queue
import sys
import threading
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from ray.exceptions import RayError

from experiments.config import TrackingConfig
from experiments.serving.episode_events import PathData
from experiments.serving.request_traces import RequestTraces
from experiments.serving.schemas import PolicyReference, Refusal, RouteJob, RouteRequest, unavailable
from retrieval_actors.actors.start_actors import start_retrieval
from retrieval_actors.config import RetrievalConfig
from retrieval_actors.records import Passage, Query
from retrieval_actors.sharded_search import Retriever
from rollout.confidence import Calibration, read_calibration
from rollout.config import RolloutConfig
from rollout.engines import make_engine
from rollout.engines.base import Engine, EngineDiedError
from rollout.episode_pool import EpisodeEvent, EpisodePool
from rollout.records import Question
from rollout.searches import Searcher

RELEASE_AFTER_S = 30.0  # how long a replaced policy is kept without questions, as one may still arrive
WAIT_S = 0.005  # the longest wait for searches when there is nothing to generate, and so of a new question
LAST = ("finished", "failed")
Send = Callable[[EpisodeEvent | Refusal], Any]


class KnowledgeBases:
    """Started once and shared by all router replicas; it outlives them."""

    async def __init__(self, retrieval: RetrievalConfig):  # type: ignore[misc]
        self._progress = "starting"
        self._starting = asyncio.create_task(asyncio.to_thread(start_retrieval, retrieval, self._report))

    def _report(self, what: str, done: int, total: int) -> None:
        self._progress = f"{what} {done}/{total}"

    async def progress(self) -> str:
        error = self._starting.exception() if self._starting.done() else None
        return f"failed: {error}" if error else self._progress

    async def retriever(self) -> Retriever:
        """Waits until all actors have loaded. Raises what starting them raised."""
        return await asyncio.shield(self._starting)

    async def search(self, kb: str, query: str, k: int) -> list[Passage]:
        """The `k` nearest passages, best first."""
        return (await asyncio.to_thread((await self.retriever()).search_routed, [(kb, Query(query))], k))[0]

    def check_health(self) -> None:
        """Called by Serve, which restarts the replica when it raises."""
        if self._starting.done():
            self._starting.result()


class CurrentKnowledgeBases:
    """Searches the retrieval actors that run now, with pictures; `retriever` is replaced when their deployment restarts."""

    def __init__(self, retriever: Retriever):
        self.retriever, self.catalog = retriever, retriever.catalog
        self._pictures = any("image" in card.modality for card in retriever.catalog)

    def search_routed(self, asked: Sequence[tuple[str, Query]], k: int) -> list[list[Passage]]:
        return self.retriever.search_routed(asked, k, pictures=self._pictures)


class EpisodeThread:
    """The one thread that uses an engine: questions arrive through a queue and join the engine's batch, events go back to each caller."""

    def __init__(self, engine: Engine, searcher: Searcher, rollout: RolloutConfig, calibration: Calibration | None = None):
        self.calibration = calibration
        self._engine, self._searcher, self._rollout = engine, searcher, rollout
        self._pool = EpisodePool(engine, searcher, join="as_they_come")
        self._callers: dict[int, Send] = {}
        self._commands: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._questions, self._idle_since = 0, time.monotonic()
        self._thread = threading.Thread(target=self._run, name="episodes", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def idle_s(self) -> float:
        return 0.0 if self._questions else time.monotonic() - self._idle_since

    async def run(self, job: RouteJob) -> AsyncGenerator[EpisodeEvent]:
        """The events of the question, to the last one; a caller that stops listening cancels it. Raises Refusal if the engine fails."""
        events: asyncio.Queue[EpisodeEvent | Refusal] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def send(event: EpisodeEvent | Refusal) -> None:
            loop.call_soon_threadsafe(events.put_nowait, event)

        self._questions += 1
        self._commands.put(lambda: self._add(job, send))
        try:
            while True:
                event = await events.get()
                if isinstance(event, Refusal):
                    raise event
                yield event
                if event.kind in LAST:
                    return
        finally:
            self._questions, self._idle_since = self._questions - 1, time.monotonic()
            self._commands.put(lambda: self._cancel(send))

    def close(self) -> None:
        self._commands.put(None)
        self._thread.join(timeout=10)

    # The rest is called in the thread.

    def _run(self) -> None:
        while True:
            while not (self._pool.unfinished and self._commands.empty()):
                if (command := self._commands.get()) is None:
                    return self._pool.close()
                command()
            self._advance()

    def _add(self, job: RouteJob, send: Send) -> None:
        question, config = Question(job.request_id, job.request.question.strip(), (), job.image), episode_config(self._rollout, job.request)
        options: dict[str, Any] = {"kbs": job.kbs, "deadline_s": job.deadline_s, "earlier": job.request.chat}
        self._callers[self._pool.add(question, config, job.seed, **options)] = send

    def _cancel(self, send: Send) -> None:
        for ticket in [ticket for ticket, caller in self._callers.items() if caller is send]:
            del self._callers[ticket]
            self._pool.cancel(ticket)

    def _advance(self) -> None:
        try:
            events = self._pool.advance(WAIT_S)
        except Exception as error:  # the running questions are lost; later ones get a new pool
            self._pool.close()
            self._pool = EpisodePool(self._engine, self._searcher, join="as_they_come")
            for send in self._callers.values():
                send(unavailable("engine_failed", f"the engine failed, and was restarted: {type(error).__name__}: {error}"))
            self._callers.clear()
            if isinstance(error, EngineDiedError):  # This thread ends, and Serve starts another replica
                raise
            return
        for event in events:
            if event.ticket in self._callers:  # otherwise it was cancelled
                self._callers[event.ticket](event)
            if event.kind in LAST:
                self._callers.pop(event.ticket, None)


def episode_config(served: RolloutConfig, request: RouteRequest) -> RolloutConfig:
    """The settings of one episode: those of the service, with the options of the request."""
    steps = served.max_steps if request.max_steps is None else request.max_steps
    tokens = min(request.max_tokens or served.max_new_tokens, served.max_new_tokens)
    config = replace(served, max_steps=steps, passages=request.k or served.passages, max_new_tokens=tokens)
    return replace(config, temperature=request.sampling_temperature, top_p=request.top_p or 1.0)


class Router:
    """Has one `EpisodeThread` per loaded policy: one, and two after a reload, as questions finish on the policy that they began with."""

    async def __init__(  # type: ignore[misc]
        self,
        kbs: Any,
        rollout: RolloutConfig,
        policy: PolicyReference,
        on_gpu: bool,
        dtype: str = "float32",
        tracking: TrackingConfig | None = None,
        model: str = "",
    ):
        """`kbs`: handle of the `KnowledgeBases` deployment; `tracking`: where the episodes become traces, of this `model`; None: nowhere."""
        self._traces = RequestTraces(tracking, model) if tracking else None
        sys.setswitchinterval(0.0005)  # its default is 0.005: the engine must not delay the event loop that sends its results
        self._config = replace(rollout, mode="chain", group_size=1, routing="policy")
        self._kbs, self._on_gpu, self._dtype = kbs, on_gpu, dtype
        self._loading = asyncio.Lock()
        engine = asyncio.create_task(asyncio.to_thread(load_engine, policy, self._config, on_gpu, dtype))  # while the knowledge bases load
        self._searcher = CurrentKnowledgeBases(await kbs.retriever.remote())
        self._threads = {policy: EpisodeThread(await engine, self._searcher, self._config, read_calibration(policy.folder))}
        self._newest = policy
        self._watching = asyncio.create_task(self._watch())

    async def ready(self) -> bool:
        """Returns once the replica has loaded."""
        return True

    async def hold(self, policy: PolicyReference) -> None:
        """Load the policy, unless it is loaded, beside the current one. Raises what loading raises."""
        async with self._loading:
            if policy not in self._threads:
                engine = await asyncio.to_thread(load_engine, policy, self._config, self._on_gpu, self._dtype)
                self._threads[policy] = EpisodeThread(engine, self._searcher, self._config, read_calibration(policy.folder))
            self._newest = policy

    async def answer(self, job: RouteJob) -> AsyncGenerator[dict[str, Any] | Refusal]:
        """Events of the question as data; the last is `finished`, or a Refusal."""
        began = time.perf_counter()
        try:
            if job.policy not in self._threads:  # this replica started after a reload
                await self.hold(job.policy)
            path = PathData(job, self._threads[job.policy].calibration)
            async with aclosing(self._threads[job.policy].run(job)) as events:  # a caller that stops listening frees the slot at once
                async for event in events:
                    if event.trajectory and self._traces:
                        self._traces.add(event.trajectory)
                    data = path.event(event, time.perf_counter() - began)
                    if job.request.stream or data["event"] == "finished":
                        yield data
        except Refusal as refusal:
            yield refusal

    async def _watch(self) -> None:
        """Follow the knowledge bases when they are restarted, and release policies that were replaced."""
        while True:
            await asyncio.sleep(2)
            for policy, thread in list(self._threads.items()):
                if policy != self._newest and thread.idle_s > RELEASE_AFTER_S:
                    self._threads.pop(policy).close()
            try:
                current = await self._kbs.retriever.remote()
            except RayError:  # their replica has died, and Serve starts another one
                continue
            if current.log._actor_id != self._searcher.retriever.log._actor_id:
                self._searcher.retriever = current

    def check_health(self) -> None:
        if not all(thread.alive for thread in self._threads.values()):
            raise RuntimeError("the engine's thread has ended")

    def __del__(self) -> None:
        for thread in getattr(self, "_threads", {}).values():
            thread.close()


def load_engine(policy: PolicyReference, config: RolloutConfig, on_gpu: bool, dtype: str) -> Any:
    engine = make_engine(policy.folder, config, dtype, on_gpu)
    engine.policy_version = policy.version
    return engine
