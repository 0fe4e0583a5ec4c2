"""The routes, the page, and errors in OpenAI's form. No `from __future__ import annotations`: FastAPI reads the annotations."""

import asyncio
import base64
import hashlib
import json
import re
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from experiments.serving import schemas
from experiments.serving.openai_chat import as_route_request, check_model, chunks, completion, cut
from experiments.serving.openai_responses import Responses, as_chat
from experiments.serving.schemas import PolicyReference, Refusal

PAGE = Path(__file__).parent / "page" / "index.html"
ERRORS: dict[int | str, Any] = {status: {"model": schemas.Error} for status in (400, 401, 404, 408, 413, 415, 421, 422, 429, 503, 504)}
EVENTS = {"content": {"text/event-stream": {}}, "description": "JSON, or with stream=true server-sent events"}


async def _until_sent() -> AsyncIterator[AsyncExitStack]:
    """FastAPI closes it when the response was sent, or the client has disconnected."""
    async with AsyncExitStack() as held:
        yield held


Held = Annotated[AsyncExitStack, Depends(_until_sent)]


def build_api(endpoint: Any) -> FastAPI:
    app = FastAPI(title="R1-Router", version="1", docs_url=None, redoc_url=None, strict_content_type=False)
    for add in (_add_error_handlers, _add_questions, _add_information):
        add(app, endpoint)
    return app


def _add_questions(app: FastAPI, endpoint: Any) -> None:
    @app.post("/v1/route", responses={200: EVENTS, **ERRORS})
    async def route(body: schemas.RouteRequest, request: Request, held: Held) -> Response:
        """The answer with every step: thought, query, knowledge base, passages and sub-answer."""
        events = await begin(endpoint, request, body, held)
        if not body.stream:
            return JSONResponse(await whole(request, events))
        return _stream((event["event"], event) async for event in events)

    @app.post("/v1/chat/completions", responses={200: EVENTS, **ERRORS})
    async def chat(body: schemas.ChatRequest, request: Request, held: Held) -> Response:
        """OpenAI's chat completions. The last message of role user is the question; images come as data URLs."""
        model = endpoint.settings.model
        events = await begin(endpoint, request, as_route_request(body, model), held)
        if not body.stream:
            return JSONResponse(completion(cut(await whole(request, events), body.stop), model))

        async def lines() -> AsyncIterator[str]:
            async for chunk in chunks(events, body, request.state.request_id, model, request.state.logged["policy_version"]):
                yield f"data: {_json(chunk)}\n\n"
            yield "data: [DONE]\n\n"

        return StreamingResponse(lines(), media_type="text/event-stream")

    @app.post("/v1/responses", responses={200: EVENTS, **ERRORS})
    async def respond(body: schemas.ResponsesRequest, request: Request, held: Held) -> Response:
        """OpenAI's Responses API: a reasoning item with the path, and a message with the answer. Nothing is stored."""
        events = await begin(endpoint, request, as_route_request(as_chat(body), endpoint.settings.model), held)
        made = Responses(request.state.request_id, endpoint.settings.model, request.state.logged["policy_version"])
        if not body.stream:
            return JSONResponse(made.whole(await whole(request, events)))
        return _stream((event["type"], event) async for event in made.events(events))

    @app.post("/v1/admin/reload", responses=ERRORS)
    async def reload(body: schemas.ReloadRequest) -> schemas.ReloadRequest:
        """Load another policy. New questions use it once every replica has loaded it; running ones finish with the old one."""
        if endpoint.status != "ready":
            raise schemas.unavailable(endpoint.status, f"the service is {endpoint.status}")
        if not await asyncio.to_thread((Path(body.policy) / "config.json").is_file):
            raise Refusal(422, "no_such_policy", f"{body.policy[:200]}: no folder with a config.json", "policy")
        await endpoint.reload(PolicyReference(body.policy, body.policy_version))
        return body


async def begin(endpoint: Any, request: Request, body: schemas.RouteRequest, held: AsyncExitStack) -> AsyncIterator[dict[str, Any]]:
    """The events; without `stream`, only `finished`. `held` closes the slot and the episode. Raises Refusal if there is no first event."""
    held.enter_context(endpoint.slot())
    job = await endpoint.job(body, request.state.request_id)
    request.state.logged = {"kind": "image" if job.image else "text", "stream": bool(body.stream), "policy_version": job.policy.version}
    events = await held.enter_async_context(aclosing(endpoint.events(job)))
    return _with_error(await anext(events), events, endpoint)


async def _with_error(first: dict[str, Any], events: AsyncGenerator[dict[str, Any], None], endpoint: Any) -> AsyncIterator[dict[str, Any]]:
    """All events; a Refusal becomes the last one."""
    yield first
    try:
        async for event in events:
            yield event
    except Refusal as refusal:
        endpoint.metrics.errors.labels(refusal.code).inc()
        yield {"event": "error", **refusal.body()}


async def whole(request: Request, events: AsyncIterator[dict[str, Any]]) -> dict[str, Any]:
    """The `finished` event; adds its numbers to the request log."""
    event = await anext(events)
    request.state.logged |= {"retrievals": event["retrievals"], "answer_seconds": event["seconds"]}
    return {key: value for key, value in event.items() if key != "event"}


def _stream(events: AsyncIterable[tuple[str, dict[str, Any]]]) -> Response:
    """Server-sent events: (name, data)."""
    return StreamingResponse((f"event: {name}\ndata: {_json(data)}\n\n" async for name, data in events), media_type="text/event-stream")


def _add_information(app: FastAPI, endpoint: Any) -> None:
    html, page_headers = load_page()

    def card() -> dict[str, Any]:
        name, version = endpoint.settings.model, endpoint.policy_version
        return {"id": name, "object": "model", "created": endpoint.started, "owned_by": "r1-router", "policy_version": version}

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return HTMLResponse(html, headers=page_headers)

    @app.get("/health", responses={503: {"description": "not ready"}})
    async def health(request: Request, response: Response) -> dict[str, Any]:
        """`starting`, `loading`, `ready` (200; all others 503) or `draining`, and how far it is. `warning`: the policy did not pass the gate."""
        response.status_code = 200 if endpoint.status == "ready" else 503
        names = ("status", "progress", "policy_version", "under_way", "warning")
        cards = endpoint.cards() if request.state.authorised else []
        settings = {name: getattr(endpoint.settings, name) for name in ("model", "min_confidence")}
        return {**settings, "kbs": cards, **{name: getattr(endpoint, name) for name in names}}

    @app.get("/v1/models", responses=ERRORS)
    async def models() -> dict[str, Any]:
        """The one model that is served."""
        return {"object": "list", "data": [card()]}

    @app.get("/v1/models/{name:path}", responses=ERRORS)
    async def model(name: str) -> dict[str, Any]:
        """The model of that name."""
        check_model(name, endpoint.settings.model)
        return card()

    @app.get("/v1/examples", responses=ERRORS)
    async def examples() -> dict[str, Any]:
        """Questions that the page offers."""
        return {"data": endpoint.examples}


def _add_error_handlers(app: FastAPI, endpoint: Any) -> None:
    @app.exception_handler(Refusal)
    async def refused(request: Request, refusal: Refusal) -> Response:
        endpoint.metrics.errors.labels(refusal.code).inc()
        return refusal.response()

    @app.exception_handler(RequestValidationError)
    @app.exception_handler(ValidationError)
    async def invalid(request: Request, error: RequestValidationError | ValidationError) -> Response:
        """One line for the first value that is invalid; the value itself is not repeated."""
        first: Any = error.errors()[0]
        if first["type"] == "json_invalid":
            return await refused(request, Refusal(400, "invalid_json", "the body is not JSON; expected an object"))
        place = ".".join(str(part) for part in first["loc"] if part != "body").encode(errors="replace").decode()[:100]
        message = f"{place or 'the body'}: {first['msg']}".splitlines()[0][:300]
        return await refused(request, Refusal(422, "invalid_value", message, place or None))

    @app.exception_handler(HTTPException)
    async def by_starlette(request: Request, error: HTTPException) -> Response:
        code = {400: "invalid_json", 404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "bad_request")
        return await refused(request, Refusal(error.status_code, code, f"{request.method} {request.url.path[:100]}: {error.detail}"))

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        return await refused(request, Refusal(500, "internal_error", "the service failed on this request; see its log"))


def load_page() -> tuple[str, dict[str, str]]:
    """(HTML, headers) of the page. Its content security policy allows no style and script but its own, by hash."""
    html = PAGE.read_text(encoding="utf-8")
    hashes = {}
    for tag in ("style", "script"):
        (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.S)
        hashes[tag] = f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
    own = f"script-src {hashes['script']}; style-src {hashes['style']}; img-src data: blob:; connect-src 'self'"
    policy = f"default-src 'none'; {own}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    return html, {"content-security-policy": policy, "referrer-policy": "no-referrer", "x-frame-options": "DENY"}


def _json(data: dict[str, Any]) -> str:
    return json.dumps(data, ensure_ascii=False, separators=(",", ":"))
