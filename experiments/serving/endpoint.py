"""The deployment that speaks HTTP: lets questions in while there is room, hands them to a router replica, and to another one if that dies.

It is small (no torch) and starts at once, so that `/health` can tell how far the others are.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from typing import Any

from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import RayServeException, RequestCancelledError

from experiments.serving.api import build_api
from experiments.serving.gate import Gate
from experiments.serving.jobs import PolicyReference, RouteJob
from experiments.serving.metrics import Metrics
from experiments.serving.pictures import read_picture
from experiments.serving.refusals import Refusal, too_busy, too_late, unavailable
from experiments.serving.request_log import RequestLog
from experiments.serving.schemas import RouteRequest
from experiments.serving.settings import ServeSettings, is_loopback
from retrieval_actors.records import KnowledgeBaseCard

AGAIN_S = 0.25
"""Before a question is asked again whose replica has died."""
HOLD_S = 600
"""In which all replicas have to load a policy."""


class Endpoint:
    def __init__(self, router: Any, kbs: Any, settings: dict[str, Any], digest: str, examples: list[dict[str, Any]]):
        """Handles of the other two deployments; `digest` of the API key, empty where none is needed."""
        self.settings = ServeSettings(**settings)
        self.examples, self.digest = examples, digest
        self.metrics, self.log = Metrics(), RequestLog(self.settings.request_log)
        self.started = int(time.time())
        self.status, self.progress, self.reload_error = "starting", "starting", ""
        self.under_way = 0
        self.room = self.settings.slots * self.settings.most_replicas + self.settings.queue
        self.metrics.limit.set(self.room)
        self.policy: PolicyReference | None = None
        self.catalog: tuple[KnowledgeBaseCard, ...] = ()
        self._router, self._kbs = router, kbs
        self._reloading = asyncio.Lock()
        self._tasks: set[asyncio.Task] = set()

    def __serve_build_asgi_app__(self) -> Any:
        settings = self.settings
        api = build_api(self)
        return Gate(api, self.digest, settings.max_body_mb * 2**20, is_loopback(settings.host), self.metrics, self.log)

    async def reconfigure(self, config: dict[str, Any]) -> None:
        """`user_config` of a Serve configuration: another policy there is loaded in place, while the one before it answers."""
        policy = PolicyReference(config["policy"], config["policy_version"])
        if self.policy is None:
            self._use(policy)
            self._go(self._get_ready())
        elif policy != self.policy:
            self._go(self._reload_quietly(policy))

    async def reload(self, policy: PolicyReference) -> None:
        """All replicas load the policy, then new questions go to it; those under way end on the one before. Raises Refusal, and nothing has
        changed, when it does not load."""
        async with self._reloading:
            try:
                await asyncio.wait_for(self._router.broadcast("hold", policy).results_async(), HOLD_S)
            except RayTaskError as error:
                reason = str(error.cause).strip().splitlines()[0][:300]
                raise Refusal(422, "policy_does_not_load", f"policy {policy.folder}: {reason}", "policy") from None
            except (RayError, RayServeException, TimeoutError):
                raise unavailable("replica_unavailable", "a router replica is away; nothing has changed, try again") from None
            self._use(policy)

    async def drain(self) -> None:
        """Nothing new is let in; returns when all that is under way has ended, at most `drain_s` seconds later."""
        self.status, self.progress = "draining", "no new questions are taken"
        end = time.monotonic() + self.settings.drain_s
        while self.under_way and time.monotonic() < end:
            await asyncio.sleep(0.05)

    async def health(self) -> dict[str, Any]:
        """For the process that started the service."""
        return {"status": self.status, "progress": self.progress}

    @contextmanager
    def slot(self) -> Any:
        """Room for one question. Raises Refusal where there is none, and while nothing can be answered."""
        if self.status != "ready":
            raise unavailable(self.status, f"the service is {self.status}: {self.progress}")
        if self.under_way >= self.room:
            raise too_busy(self.under_way)
        self.under_way += 1
        self.metrics.slots.set(self.under_way)
        try:
            yield
        finally:
            self.under_way -= 1
            self.metrics.slots.set(self.under_way)

    async def job(self, asked: RouteRequest, request_id: str, events: bool) -> RouteJob:
        """The question as the router takes it. Raises Refusal for a picture or a knowledge base that cannot be used."""
        known = [card.name for card in self.catalog]
        for kb in asked.kbs or []:
            if kb not in known:
                raise Refusal(422, "unknown_knowledge_base", f"knowledge base {kb[:100]!r} is none of {', '.join(known)}", "kbs")
        image = None
        if asked.image is not None:
            image = await asyncio.to_thread(read_picture, asked.image, self.settings.max_megapixels * 1e6, "image")
        assert self.policy is not None
        return RouteJob(
            request_id=request_id,
            question=asked.question.strip(),
            image=image,
            kbs=tuple(dict.fromkeys(asked.kbs)) if asked.kbs else tuple(known),
            policy=self.policy,
            seed=(asked.seed if asked.seed is not None else 0 if asked.temperature == 0 else random.getrandbits(62)) % 2**63,
            deadline_s=min(asked.timeout_s or self.settings.deadline_s, self.settings.deadline_s),
            deadline_asked=asked.timeout_s is not None and asked.timeout_s < self.settings.deadline_s,
            max_steps=asked.max_steps,
            k=asked.k,
            temperature=asked.temperature,
            top_p=asked.top_p,
            max_tokens=asked.max_tokens,
            events=events,
            pictures=asked.pictures,
        )

    async def events(self, job: RouteJob) -> AsyncGenerator[dict[str, Any], None]:
        """What happens to the question, up to `finished`. Raises Refusal when there is no answer.

        A question whose replica dies is asked again: with its seed and policy version it takes the same path, so that events that were already
        handed out are not repeated, and the caller notices nothing but the time.
        """
        end, told, late = time.monotonic() + job.deadline_s, 0, too_late(job.deadline_s, job.deadline_asked)
        while True:
            left = end - time.monotonic()
            if left <= 0:
                raise late
            stream = self._router.options(stream=True).answer.remote(replace(job, deadline_s=left))
            try:
                number = 0
                async for event in _within(stream, end, late):
                    if event["event"] == "error":
                        detail = event["error"]
                        raise Refusal(event["status"], detail["code"], detail["message"], detail["param"], event["retry_after_s"])
                    number += 1
                    if number > told:
                        told = number
                        self.metrics.count(event)
                        yield event
                return
            except RayTaskError as error:
                raise Refusal(500, "internal_error", "the router failed on this question; its log says more") from error
            except RequestCancelledError as error:
                raise unavailable("cancelled", "the question was given up") from error
            except (RayError, RayServeException):  # its replica has died, or is about to
                self.metrics.retries.inc()
                await asyncio.sleep(AGAIN_S)
            finally:
                stream.cancel()

    def _use(self, policy: PolicyReference) -> None:
        self.policy, self.reload_error = policy, ""
        self.metrics.policy_version.set(policy.version)

    def _go(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _reload_quietly(self, policy: PolicyReference) -> None:
        try:
            await self.reload(policy)
        except Refusal as refusal:  # nobody waits for it: /health tells
            self.reload_error = refusal.message

    async def _get_ready(self) -> None:
        """Waits for the knowledge bases, then for a router replica, and says how far they are."""
        self.status = "loading"
        retriever = asyncio.ensure_future(self._until_it_answers(self._kbs.retriever))
        router = asyncio.ensure_future(self._until_it_answers(self._router.ready))
        while not retriever.done():
            with suppress(RayError, RayServeException, TimeoutError):
                self.progress = f"knowledge bases: {await asyncio.wait_for(self._kbs.progress.remote(), 2)}"
            await asyncio.wait([retriever], timeout=0.2)
        self.catalog = retriever.result().catalog
        self.progress = "policy: loading"
        await router
        self.status, self.progress = "ready", "ready"

    async def _until_it_answers(self, method: Any) -> Any:
        while True:
            try:
                return await method.remote()
            except (RayError, RayServeException):  # it is being started anew; `progress` says why
                await asyncio.sleep(1)

    def cards(self) -> list[dict[str, Any]]:
        keys = ("name", "description", "modality", "passages", "fingerprint")
        return [{key: card[key] for key in keys} for card in map(asdict, self.catalog)]


async def _within(stream: Any, end: float, late: Refusal) -> AsyncIterator[dict[str, Any]]:
    """The items of a stream, none later than `end` (by `time.monotonic`). Raises `late` when it is."""
    items = aiter(stream)
    while True:
        try:
            yield await asyncio.wait_for(anext(items), max(0.0, end - time.monotonic()) + 1)  # the router gives up first, and says why
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise late from None
