"""What every request passes before anybody reads it: its address, its key, its size and its type; and what is written down when it ends.

Plain ASGI, so that answers stream through it untouched and a client that goes away is noticed.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import re
import time
import uuid
from typing import Any

from experiments.serving.metrics import Metrics
from experiments.serving.refusals import Refusal
from experiments.serving.request_log import RequestLog
from experiments.serving.settings import key_digest

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
OPEN = ("/", "/health")
"""Answered without a key: the page has to load before anybody can type one, and a load balancer has none."""
LOCAL_NAMES = {"localhost", "127.0.0.1", "[::1]", ""}
BODY_SECONDS = 30
"""In which a body has to arrive."""


class Gate:
    def __init__(self, app: Any, digest: str, max_body: int, only_local: bool, metrics: Metrics, log: RequestLog):
        """`digest`: of the key (`key_digest`), empty where none is needed. `only_local`: listens on loopback, and so answers to no other name:
        a page from elsewhere that has its own name resolve to this machine gets nothing."""
        self._app, self._digest, self._max_body, self._only_local = app, digest, max_body, only_local
        self._metrics, self._log = metrics, log

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        given = headers.get("x-request-id", "")  # Serve gives every request one, and sends it back with the answer
        request_id = given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        scope["state"]["authorised"] = self._authorised(headers)
        began, status = time.perf_counter(), 0

        async def answer(message: dict[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                extra = {"x-content-type-options": "nosniff", "cache-control": "no-store"}
                message["headers"] = [*message.get("headers", []), *((k.encode(), v.encode()) for k, v in extra.items())]
            await send(message)

        try:
            try:
                self._admit(scope, headers)
                body = await self._read(receive, headers) if scope["method"] in ("POST", "PUT", "PATCH") else b""
            except Refusal as refusal:
                self._metrics.errors.labels(refusal.code).inc()
                await _refuse(refusal, answer)
                return
            await self._app(scope, _replay(body, receive), answer)
        except asyncio.CancelledError:
            status = 499
            self._metrics.disconnects.inc()
            raise
        finally:
            seconds, route = time.perf_counter() - began, _route_of(scope)
            self._metrics.requests.labels(route, str(status)).inc()
            self._metrics.seconds.labels(route).observe(seconds)
            told = scope["state"].get("told", {})
            self._log.write(request_id=request_id, method=scope["method"], route=route, status=status, seconds=round(seconds, 4), **told)

    def _authorised(self, headers: dict[str, str]) -> bool:
        kind, _, key = headers.get("authorization", "").partition(" ")
        return not self._digest or (kind.lower() == "bearer" and hmac.compare_digest(key_digest(key.strip()), self._digest))

    def _admit(self, scope: dict[str, Any], headers: dict[str, str]) -> None:
        name = headers.get("host", "").rpartition(":")[0] if not headers.get("host", "").endswith("]") else headers["host"]
        if self._only_local and (name or headers.get("host", "")) not in LOCAL_NAMES:
            raise Refusal(421, "misdirected_request", "this service answers to localhost only")
        if not scope["state"]["authorised"] and scope["path"] not in OPEN:
            raise Refusal(401, "invalid_api_key", "send the API key of this service as Authorization: Bearer KEY")
        if scope["method"] == "POST" and headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            # Nothing else is read; and a page from elsewhere cannot send it without asking, which is never granted.
            raise Refusal(415, "unsupported_media_type", "expected a body of Content-Type: application/json")

    async def _read(self, receive: Any, headers: dict[str, str]) -> bytes:
        too_large = Refusal(413, "body_too_large", f"the body is larger than {self._max_body} bytes")
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length) > self._max_body:
            raise too_large
        parts, size = [], 0
        try:
            async with asyncio.timeout(BODY_SECONDS):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise Refusal(400, "client_disconnected", "the body did not arrive whole")
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > self._max_body:
                        raise too_large
                    if not message.get("more_body", False):
                        return b"".join(parts)
        except TimeoutError:
            raise Refusal(408, "request_timeout", f"the body did not arrive within {BODY_SECONDS} s") from None


def _replay(body: bytes, receive: Any) -> Any:
    """What was read, for whoever reads next; then whatever else comes."""
    waiting = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> dict[str, Any]:
        return waiting.pop() if waiting else await receive()

    return again


async def _refuse(refusal: Refusal, send: Any) -> None:
    body = json.dumps(refusal.body()).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body)), **refusal.headers()}
    if refusal.status == 401:
        headers["www-authenticate"] = "Bearer"
    pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": refusal.status, "headers": pairs})
    await send({"type": "http.response.body", "body": body})


def _route_of(scope: dict[str, Any]) -> str:
    """The path where there is such a route: whatever else people ask for must not become a label each."""
    return scope["path"] if scope.get("endpoint") else "other"
