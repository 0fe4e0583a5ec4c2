"""The routes, and what each says in the OpenAPI description. No `from __future__ import annotations`: FastAPI reads the annotations."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from experiments.serving import schemas
from experiments.serving.chat import Chunks, as_route_request, completion
from experiments.serving.jobs import PolicyReference
from experiments.serving.page import load_page
from experiments.serving.refusals import Refusal

ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": schemas.Error, "description": said}
    for status, said in {
        400: "not JSON",
        401: "the API key is missing or wrong",
        404: "no such model or address",
        408: "the body did not arrive in time, or no answer within timeout_s",
        413: "body or image too large",
        415: "another content type than JSON, or another image than PNG or JPEG",
        421: "asked by another name than localhost",
        422: "a value that cannot be used",
        429: "too many questions; Retry-After says when to come back",
        503: "loading, draining, or a knowledge base or a replica is away",
        504: "no answer by the deadline of the service",
    }.items()
}
EVENT = {"type": "object", "properties": {"event": {"type": "string"}, "data": {"type": "string"}}, "required": ["data"]}
EVENTS = {"content": {"text/event-stream": {"schema": EVENT}}, "description": "JSON, or with stream=true server-sent events"}


def build_api(endpoint: Any) -> FastAPI:
    """`endpoint`: the `Endpoint` that answers."""
    said = "Answers by routing over knowledge bases, and shows how."
    app = FastAPI(title="R1-Router", version="1", description=said, docs_url=None, redoc_url=None)
    _tell_errors(app)
    _add_questions(app, endpoint)
    _add_information(app, endpoint)
    return app


def _add_questions(app: FastAPI, endpoint: Any) -> None:
    @app.post("/v1/route", responses={200: {"model": schemas.RouteAnswer, **EVENTS}, **ERRORS})
    async def route(asked: schemas.RouteRequest, request: Request) -> Response:
        """The path that the policy takes, and where it ends: every step with its thought, query, knowledge base, passages and sub-answer."""

        async def told(job: Any, events: AsyncIterator[dict[str, Any]]) -> AsyncIterator[str]:
            async for event in events:
                yield f"event: {event['event']}\ndata: {_json(event)}\n\n"

        return await _answer(endpoint, request, asked, told, lambda answer: answer)

    @app.post("/v1/chat/completions", responses={200: {"model": schemas.ChatCompletion, **EVENTS}, **ERRORS})
    async def chat(asked: schemas.ChatRequest, request: Request) -> Response:
        """OpenAI's chat completions. The last user message is the question, each stands alone; images come as data URLs."""
        routed = as_route_request(asked, endpoint.settings.model)

        async def told(job: Any, events: AsyncIterator[dict[str, Any]]) -> AsyncIterator[str]:
            wants_usage = asked.stream_options is not None and asked.stream_options.include_usage
            chunks = Chunks(job.request_id, endpoint.settings.model, job.policy.version, wants_usage)
            yield f"data: {_json(chunks.opening())}\n\n"
            async for event in events:
                if event["event"] == "error":
                    yield f"data: {_json({'error': event['error']})}\n\n"
                for chunk in chunks.of(event):
                    yield f"data: {_json(chunk)}\n\n"
            yield "data: [DONE]\n\n"

        return await _answer(endpoint, request, routed, told, lambda answer: completion(answer, endpoint.settings.model))

    @app.post("/v1/admin/reload", responses={200: {"model": schemas.Reloaded}, **ERRORS})
    async def reload(asked: schemas.ReloadRequest) -> Response:
        """Another policy takes over in place: new questions go to it once every replica has loaded it, those under way end on the old one."""
        if endpoint.status != "ready":
            raise Refusal(503, endpoint.status, f"the service is {endpoint.status}", retry_after_s=2)
        if not await asyncio.to_thread((Path(asked.policy) / "config.json").is_file):
            raise Refusal(422, "no_such_policy", f"{asked.policy[:200]}: no folder with a config.json", "policy")
        policy = PolicyReference(asked.policy, asked.policy_version)
        await endpoint.reload(policy)
        return JSONResponse({"policy": policy.folder, "policy_version": policy.version})


def _add_information(app: FastAPI, endpoint: Any) -> None:
    html, page_headers = load_page()

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return HTMLResponse(html, headers=page_headers)

    @app.get(
        "/health", responses={200: {"model": schemas.Health}, 503: {"model": schemas.Health, "description": "not ready yet, or no more"}}
    )
    async def health(request: Request) -> Response:
        """How far the service is: `starting`, `loading`, `ready` (200; all others 503) or `draining`."""
        told = {
            "status": endpoint.status,
            "progress": endpoint.progress,
            "model": endpoint.settings.model,
            "policy_version": endpoint.policy.version if endpoint.policy else 0,
            "kbs": endpoint.cards() if request.state.authorised else [],
            "under_way": endpoint.under_way,
            "reload_error": endpoint.reload_error or None,
        }
        return JSONResponse(told, status_code=200 if endpoint.status == "ready" else 503)

    @app.get("/v1/models", responses={200: {"model": schemas.ModelList}, 401: ERRORS[401]})
    async def models() -> Response:
        """The one model that is served."""
        version = endpoint.policy.version if endpoint.policy else 0
        model = schemas.Model(id=endpoint.settings.model, created=endpoint.started, policy_version=version)
        return JSONResponse(schemas.ModelList(data=[model]).model_dump())

    @app.get("/v1/examples", responses={200: {"model": schemas.ExampleList}, 401: ERRORS[401]})
    async def examples() -> Response:
        """Questions that the page offers."""
        return JSONResponse({"data": endpoint.examples})

    @app.get("/metrics", include_in_schema=False)
    async def metrics() -> Response:
        return Response(endpoint.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


async def _answer(
    endpoint: Any, request: Request, asked: schemas.RouteRequest, told: Callable[..., AsyncIterator[str]], whole: Callable[[Any], Any]
) -> Response:
    """JSON at the end, or events on the way. An error before the first event is an answer with its status; a later one is the last event."""
    room = endpoint.slot()
    room.__enter__()
    try:
        job = await endpoint.job(asked, request.state.request_id, events=asked.stream)
        request.state.told = {"kind": "image" if job.image else "text", "stream": asked.stream, "policy_version": job.policy.version}
        events = endpoint.events(job)
        first = await anext(events)
        if asked.stream:
            return StreamingResponse(_then_leave(told(job, _from(first, events)), events, room), media_type="text/event-stream")
        request.state.told |= {"retrievals": first["retrievals"], "answer_seconds": first["seconds"]}
        first.pop("event")
        answer = JSONResponse(whole(first))
    except BaseException:
        room.__exit__(None, None, None)
        raise
    room.__exit__(None, None, None)
    return answer


async def _from(first: dict[str, Any], events: AsyncGenerator[dict[str, Any], None]) -> AsyncIterator[dict[str, Any]]:
    """All events; one that says why there is no answer, where there is none."""
    yield first
    try:
        async for event in events:
            yield event
    except Refusal as refusal:
        yield {"event": "error", **refusal.body()}


async def _then_leave(lines: AsyncIterator[str], events: AsyncGenerator[dict[str, Any], None], room: Any) -> AsyncIterator[str]:
    """The lines; when they end, or their reader goes away, the place in the batch and the slot are free."""
    try:
        async with aclosing(events):
            async for line in lines:
                yield line
    finally:
        room.__exit__(None, None, None)


def _tell_errors(app: FastAPI) -> None:
    """Every error has the form of `Refusal`."""

    @app.exception_handler(Refusal)
    async def refused(request: Request, refusal: Refusal) -> Response:
        return JSONResponse(refusal.body(), refusal.status, refusal.headers())

    @app.exception_handler(RequestValidationError)
    async def not_valid(request: Request, error: RequestValidationError) -> Response:
        return JSONResponse(*_first_finding(error.errors()))

    @app.exception_handler(ValidationError)
    async def not_valid_inside(request: Request, error: ValidationError) -> Response:
        return JSONResponse(*_first_finding(error.errors()))

    @app.exception_handler(HTTPException)
    async def by_starlette(request: Request, error: HTTPException) -> Response:
        code = {400: "invalid_json", 404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "bad_request")
        refusal = Refusal(error.status_code, code, f"{request.method} {request.url.path[:100]}: {error.detail}")
        return JSONResponse(refusal.body(), error.status_code, dict(error.headers or {}))

    @app.exception_handler(Exception)
    async def broken(request: Request, error: Exception) -> Response:
        return JSONResponse(Refusal(500, "internal_error", "the service failed on this request; its log says more").body(), 500)


def _first_finding(errors: Any) -> tuple[dict[str, Any], int]:
    """One line for the first thing that does not fit; what was sent is not repeated."""
    first = errors[0]
    if first["type"] == "json_invalid":
        return Refusal(400, "invalid_json", "the body is not JSON; expected an object").body(), 400
    place = ".".join(str(part) for part in first["loc"] if part != "body")
    message = f"{place}: {first['msg']}" if place else f"the body: {first['msg']}"
    return Refusal(422, "invalid_value", message.splitlines()[0][:300], place[:100] or None).body(), 422


def _json(data: dict[str, Any]) -> str:
    return json.dumps(data, ensure_ascii=False, separators=(",", ":"))
