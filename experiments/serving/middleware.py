"""Middleware of every request: normalised addresses, admission (host name, key, type, size), metrics, and the request log.
Plain ASGI, so that answers are streamed unchanged and a disconnected client is noticed."""

from __future__ import annotations

import asyncio
import hmac
import json
import re
import sys
import uuid
from collections.abc import Callable, Mapping, MutableMapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_fastapi_instrumentator import Instrumentator
from prometheus_fastapi_instrumentator.metrics import Info
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request

from experiments.serving.schemas import PHASES, Refusal
from experiments.serving.settings import is_loopback, key_digest

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
OPEN = ("/", "/health")  # need no key: the page loads before the user types one, and load balancers have none
BODY_SECONDS = 30  # for the body to arrive
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)  # buckets of the histograms


class Metrics:
    """Prometheus metrics, and the request log (`log_file`; empty: stderr): a line of JSON for each, without questions, pictures and keys."""

    def __init__(self, log_file: str, watched: Mapping[str, Callable[[], float]]):
        self._log = Path(log_file).open("a", encoding="utf-8", buffering=1) if log_file else sys.stderr  # noqa: SIM115
        self._registry = CollectorRegistry()
        here: dict[str, Any] = {"registry": self._registry, "namespace": "r1_router"}
        for name, value in watched.items():  # read whenever Prometheus asks
            Gauge(name, name.replace("_", " "), **here).set_function(value)
        self.requests = Counter("requests", "Requests answered", ["route", "status"], **here)
        self.seconds = Histogram("request_seconds", "From the first byte in to the last byte out", ["route"], buckets=SECONDS, **here)
        self.phase_seconds = Histogram("phase_seconds", "Of one phase of a step", ["phase"], buckets=SECONDS, **here)
        self.steps = Histogram("steps", "Retrievals of an answered question", buckets=range(9), **here)
        self.searches = Counter("searches", "Searches of a knowledge base", ["kb"], **here)
        self.errors = Counter("errors", "Requests that were refused or failed", ["code"], **here)
        self.retries = Counter("retries", "Questions asked again because a replica died", **here)

    def instrument(self, app: FastAPI) -> None:
        """Count every request of `app`, and serve `/metrics`."""
        instrumentator = Instrumentator(should_group_status_codes=False, registry=self._registry)
        instrumentator.add(self._finished).instrument(app).expose(app, include_in_schema=False)

    def count(self, event: dict[str, Any]) -> None:
        if event["event"] in PHASES:
            self.phase_seconds.labels(PHASES[event["event"]]).observe(event["seconds"])
        if event["event"] == "finished":
            self.steps.observe(event["retrievals"])
            for step in event["steps"]:
                if step["kb"]:
                    self.searches.labels(step["kb"]).inc()

    def _finished(self, info: Info) -> None:
        state, route = info.request.scope["state"], info.modified_handler
        status = "499" if state.get("disconnected") else info.modified_status  # 499: the client disconnected (as nginx)
        self.requests.labels(route, status).inc()
        self.seconds.labels(route).observe(info.modified_duration)
        fields = {"request_id": state["request_id"], "method": state["method"], "route": route, "status": int(status)}
        fields |= {"seconds": round(info.modified_duration, 4), **state.get("logged", {})}
        print(json.dumps({"time": datetime.now(UTC).isoformat(timespec="milliseconds"), **fields}), file=self._log, flush=True)


class Addresses:
    """Gives every request an id, answers HEAD as GET without the body, ignores repeated slashes, and adds security headers."""

    def __init__(self, app: Any):
        self._app = app

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        method, given = scope["method"], Headers(scope=scope).get("x-request-id", "")  # Serve sets one, and returns it with the answer
        state = {"request_id": given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex, "method": method}
        path = "/" + "/".join(filter(None, scope["path"].split("/")))

        async def answer(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                extra = [(b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store")]
                message["headers"] = [*message.get("headers", []), *extra]
            elif method == "HEAD":
                message["body"] = b""
            await send(message)

        return await self._app(scope | {"method": "GET" if method == "HEAD" else method, "path": path, "state": state}, receive, answer)


class Admission:
    """Refuses a request without the key, from another site, of another type than JSON, or with a body that is too large or too slow."""

    def __init__(self, app: Any, digest: str, max_body: int, only_local: bool, metrics: Metrics):
        """`digest`: of the key, or empty. `max_body`: bytes. `only_local`: refuse host names other than loopback (DNS rebinding)."""
        self._app, self._digest, self._max_body, self._only_local, self._metrics = app, digest, max_body, only_local, metrics

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        headers = Headers(scope=scope)
        kind, _, key = headers.get("authorization", "").partition(" ")
        has_key = kind.lower() == "bearer" and hmac.compare_digest(key_digest(key.strip()), self._digest)
        scope["state"]["authorised"] = not self._digest or has_key
        try:
            self._check(scope, headers)
            body = await self._read(scope, receive, headers) if scope["method"] in ("POST", "PUT", "PATCH") else b""
        except Refusal as refusal:
            self._metrics.errors.labels(refusal.code).inc()
            return await refusal.response()(scope, receive, send)
        waiting = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Any:
            return waiting.pop() if waiting else await receive()

        try:
            return await self._app(scope, replay, send)
        except asyncio.CancelledError:
            scope["state"]["disconnected"] = True
            raise

    def _check(self, scope: dict[str, Any], headers: Headers) -> None:
        name = re.sub(r":\d*$", "", headers.get("host", ""))
        if self._only_local and name and not is_loopback(name.lower()):
            raise Refusal(421, "misdirected_request", "this service answers to localhost only")
        if not scope["state"]["authorised"] and scope["path"] not in OPEN:
            raise Refusal(401, "invalid_api_key", "send the API key of this service as Authorization: Bearer KEY")
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        # A page from elsewhere cannot send JSON unless a preflight request allows it, and none does. Only browsers send Origin.
        if scope["method"] == "POST" and kind != "application/json" and (kind or "origin" in headers):
            raise Refusal(415, "unsupported_media_type", "expected a body of Content-Type: application/json")
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise Refusal(415, "unsupported_encoding", "expected a body that is not compressed")

    async def _read(self, scope: dict[str, Any], receive: Any, headers: Headers) -> bytes:
        too_large = Refusal(413, "body_too_large", f"the body is larger than {self._max_body} bytes")
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length) > self._max_body:
            raise too_large
        body = bytearray()
        try:
            async with asyncio.timeout(BODY_SECONDS):
                async for part in Request(scope, receive).stream():
                    body += part
                    if len(body) > self._max_body:
                        raise too_large
            return bytes(body)
        except ClientDisconnect:
            raise Refusal(400, "client_disconnected", "the body did not arrive whole") from None
        except TimeoutError:
            raise Refusal(408, "request_timeout", f"the body did not arrive within {BODY_SECONDS} s") from None
