"""The HTTP deployment: admits questions while slots are free, and sends each to a router replica, or to another one if that replica dies.
It is small (no torch) and starts at once, so that `/health` can report the progress of the other deployments."""

from __future__ import annotations

import asyncio
import base64
import binascii
import random
import re
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any
from urllib.parse import unquote_to_bytes

from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import RayServeException, RequestCancelledError

from experiments.serving.episode_events import passages_data
from experiments.serving.http_routes import build_api
from experiments.serving.mcp_endpoint import add_mcp
from experiments.serving.middleware import Addresses, Admission, Metrics
from experiments.serving.schemas import PolicyReference, Refusal, RouteJob, RouteRequest, unavailable
from experiments.serving.settings import ServeSettings, is_loopback
from experiments.tracking.gate_file import gate_warning
from retrieval_actors.pictures import PictureError, TooManyPixelsError, decode
from retrieval_actors.records import KnowledgeBaseCard
from rollout.records import Image

DATA_URL = re.compile(r"\s*data:[^,]*;\s*base64\s*,", re.I)
URL_SAFE = bytes.maketrans(b"-_", b"+/")
RETRY_S = 0.25  # before a question is asked again whose replica has died
HOLD_S = 600  # for all replicas to load a policy


class Endpoint:
    def __init__(self, router: Any, kbs: Any, settings: ServeSettings, digest: str, examples: list[dict[str, Any]]):
        """`router`, `kbs`: handles of the other two deployments. `digest`: of the API key, empty where none is needed."""
        self.settings, self.examples, self._digest = settings, examples, digest
        self.started, self.under_way = int(time.time()), 0
        self.room = self.settings.slots * self.settings.most_replicas + self.settings.queue
        self.status = self.progress = "starting"
        self._policy, self.warning = PolicyReference("", 0), ""  # until `reconfigure`
        self.catalog: tuple[KnowledgeBaseCard, ...] = ()
        self._router, self._kbs, self._reloading = router, kbs, asyncio.Lock()
        watched = {"slots_in_use": lambda: self.under_way, "slots": lambda: self.room, "policy_version": lambda: self.policy_version}
        self.metrics = Metrics(self.settings.request_log, watched)

    def __serve_build_asgi_app__(self) -> Any:
        api = build_api(self)
        add_mcp(api, self)
        body, only_local = self.settings.max_body_mb * 2**20, is_loopback(self.settings.host)
        api.add_middleware(Admission, digest=self._digest, max_body=body, only_local=only_local, metrics=self.metrics)
        self.metrics.instrument(api)  # outside of the admission: refused requests count
        return Addresses(api)

    async def reconfigure(self, policy: dict[str, Any]) -> None:
        """Called by Serve once, with the first policy."""
        self._use(PolicyReference(**policy))
        self._task = asyncio.create_task(self._get_ready())

    async def reload(self, policy: PolicyReference) -> None:
        """All replicas load the policy, then new questions use it. Raises Refusal when it does not load; then nothing has changed."""
        async with self._reloading:
            try:
                await asyncio.wait_for(self._router.broadcast("hold", policy).results_async(), HOLD_S)
            except RayTaskError as error:
                reason = str(error.cause).strip().splitlines()[0][:300]
                raise Refusal(422, "policy_does_not_load", f"policy {policy.folder}: {reason}", "policy") from None
            except (RayError, RayServeException, TimeoutError):
                raise unavailable("replica_unavailable", "a router replica did not answer; nothing has changed, try again") from None
            self._use(policy)

    def _use(self, policy: PolicyReference) -> None:
        self._policy, self.warning = policy, gate_warning(policy.folder)

    async def drain(self) -> None:
        """Refuse new questions; return when all running ones have ended, after `drain_s` seconds at most."""
        self.status, self.progress = "draining", "no new questions are taken"
        end = time.monotonic() + self.settings.drain_s
        while self.under_way and time.monotonic() < end:
            await asyncio.sleep(0.05)

    async def health(self) -> tuple[str, str]:
        """(status, progress), for the process that started the service."""
        return self.status, self.progress

    @property
    def policy_version(self) -> int:
        return self._policy.version

    def cards(self) -> list[dict[str, Any]]:
        """What is said of each knowledge base."""
        return [
            {name: getattr(card, name) for name in ("name", "description", "modality", "passages", "fingerprint")} for card in self.catalog
        ]

    def known(self, kbs: Sequence[str]) -> tuple[str, ...]:
        """These knowledge bases, each once. Raises Refusal for one that is not served."""
        served = [card.name for card in self.catalog]
        if unknown := [kb for kb in kbs if kb not in served]:
            raise Refusal(422, "unknown_knowledge_base", f"knowledge base {unknown[0][:100]!r} is none of {', '.join(served)}", "kbs")
        return tuple(dict.fromkeys(kbs))

    @contextmanager
    def slot(self) -> Iterator[None]:
        """Holds one slot in the block. Raises Refusal when no slot is free or the service is not ready."""
        if self.status != "ready":
            raise unavailable(self.status, f"the service is {self.status}: {self.progress}")
        if self.under_way >= self.room:
            raise Refusal(429, "rate_limit_exceeded", f"{self.under_way} questions run or wait; try again in a second", retry_after_s=1)
        self.under_way += 1
        try:
            yield
        finally:
            self.under_way -= 1

    async def job(self, request: RouteRequest, request_id: str) -> RouteJob:
        """The question for the router. Raises Refusal for a picture or a knowledge base that cannot be used."""
        kbs = self.known(request.kbs or [card.name for card in self.catalog])
        pixels = self.settings.max_megapixels * 1e6
        image = None if request.image is None else await asyncio.to_thread(read_picture, request.image, pixels)
        seed = request.seed if request.seed is not None else random.getrandbits(62) if request.sampling_temperature else 0
        deadline_s = min(request.timeout_s or self.settings.deadline_s, self.settings.deadline_s)
        least = self.settings.min_confidence if request.min_confidence is None else request.min_confidence
        request = request.model_copy(update={"image": None, "min_confidence": least})
        return RouteJob(request, request_id, image, kbs, self._policy, seed % 2**63, deadline_s)

    async def events(self, job: RouteJob) -> AsyncGenerator[dict[str, Any], None]:
        """The events of the question, up to `finished`. Raises Refusal when there is no answer. A question whose replica dies is asked again: the
        same seed and policy version give the same path, so events that were already sent are skipped."""
        end, sent = time.monotonic() + job.deadline_s, 0
        status = 408 if job.deadline_s < self.settings.deadline_s else 504  # 408: the request has set it
        late = Refusal(status, "deadline_exceeded", f"no answer within {job.deadline_s:g} s; ask for fewer steps, or later")
        while (left := end - time.monotonic()) > 0:
            stream = self._router.options(stream=True).answer.remote(replace(job, deadline_s=left))
            number = 0
            try:
                while (event := await asyncio.wait_for(anext(stream, None), max(0.0, end - time.monotonic()) + 1)) is not None:
                    if isinstance(event, Refusal):
                        raise late if event.code == late.code else event
                    number += 1
                    if number > sent:
                        sent = number
                        self.metrics.count(event)
                        yield event
                return
            except TimeoutError:  # a living router gives up a second earlier
                break
            except RayTaskError as error:
                raise Refusal(500, "internal_error", "the router failed on this question; see its log") from error
            except RequestCancelledError as error:
                raise unavailable("cancelled", "the question was cancelled") from error
            except (RayError, RayServeException):  # its replica has died, or is about to
                self.metrics.retries.inc()
                await asyncio.sleep(RETRY_S)
            finally:
                stream.cancel()
        raise late

    async def search(self, kb: str, query: str, k: int) -> list[dict[str, Any]]:
        """The `k` passages of the knowledge base that are nearest to the query, best first, without a policy. Raises Refusal."""
        with self.slot():
            self.known([kb])
            try:
                found = await asyncio.wait_for(self._kbs.search.remote(kb, query, k), self.settings.deadline_s)
            except (RayError, RayServeException, TimeoutError):
                raise unavailable("knowledge_base_unavailable", f"knowledge base {kb} did not answer; try again") from None
        return passages_data(found)

    async def _get_ready(self) -> None:
        self.status = "loading"
        retriever = asyncio.ensure_future(_until_it_answers(self._kbs.retriever))
        router = asyncio.ensure_future(_until_it_answers(self._router.ready))
        while not retriever.done():
            with suppress(RayError, RayServeException, TimeoutError):
                self.progress = f"knowledge bases: {await asyncio.wait_for(self._kbs.progress.remote(), 2)}"
            await asyncio.wait([retriever], timeout=0.2)
        self.catalog = retriever.result().catalog
        self.progress = "policy: loading"
        await router
        self.status, self.progress = "ready", "ready"


async def _until_it_answers(method: Any) -> Any:
    while True:
        try:
            return await method.remote()
        except (RayError, RayServeException):  # it is being restarted; `progress` says why
            await asyncio.sleep(1)


def read_picture(url: str, max_pixels: float) -> Image:
    """The picture of a data URL. Raises Refusal: 413 for too many pixels (counted before it is decoded), 422 for all but PNG and JPEG."""
    if not (prefix := DATA_URL.match(url)):
        raise Refusal(422, "invalid_image_url", "images come as data URLs (data:image/png;base64,...): no address is fetched", "image")
    digits = unquote_to_bytes(url[prefix.end() :]).translate(URL_SAFE, delete=b" \t\r\n\f=")
    try:
        data = base64.b64decode(digits + b"=" * (-len(digits) % 4), validate=True)
        decode(data, "image", max_pixels)
    except binascii.Error:
        raise Refusal(422, "invalid_image", "image is not base64", "image") from None
    except TooManyPixelsError as error:
        raise Refusal(413, "image_too_large", str(error), "image") from None
    except PictureError as error:
        raise Refusal(422, "invalid_image", str(error), "image") from None
    return Image.of(data)
