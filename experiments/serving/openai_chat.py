"""OpenAI's chat completions: the last user message is the question, those before it are its chat; the content is the answer, the reasoning content
is the path."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

from experiments.serving.schemas import MAX_QUESTION_CHARS, ChatRequest, EarlierTurn, Options, Refusal, RouteRequest

Events = AsyncIterator[dict[str, Any]]
NOT_OFFERED = {  # unsupported parameter -> values that are accepted, as they have no effect
    "n": (None, 1),
    "tool_choice": (None, "none", "auto"),
    "function_call": (None, "none", "auto"),
    "logprobs": (None, False),
    "top_logprobs": (None, 0),
    "logit_bias": (None, {}),
    "response_format": (None, {"type": "text"}),
    "modalities": (None, [], ["text"]),
    "presence_penalty": (None, 0),
    "frequency_penalty": (None, 0),
    "text.format": (None, {"type": "text"}),
    "previous_response_id": (None,),  # nothing is stored
    "conversation": (None,),
    "prompt": (None,),
    "background": (None, False),
}


def check_model(name: str, model: str) -> None:
    """Raises Refusal for another model than the one that is served."""
    if name != model:
        raise Refusal(404, "model_not_found", f"model {name[:100]!r} is not served; {model!r} is", "model")


def as_route_request(body: ChatRequest, model: str) -> RouteRequest:
    """Raises Refusal for another model, a parameter that is not supported, and messages without one question."""
    check_model(body.model or model, model)
    for name, harmless in NOT_OFFERED.items():
        found = (body.model_extra or {}).get(name)
        if found not in harmless:
            raise Refusal(422, "unsupported_parameter", f"{name} is {repr(found)[:40]}, which is not supported; leave it out", name)
    question, image, before = _question(body.messages)
    limit = body.max_completion_tokens or body.max_tokens or 0
    options = body.model_dump(include=set(Options.model_fields))
    return RouteRequest(question=question, image=image, max_tokens=limit if limit > 0 else None, earlier=_turns(before), **options)


def _turns(messages: list[dict[str, Any]]) -> list[EarlierTurn]:
    """The questions of the chat so far, each with its answer. Pictures, and messages of other roles, are not read."""
    turns: list[EarlierTurn] = []
    for message in messages:
        content = message.get("content")
        parts = [part.get("text") if isinstance(part, dict) else part for part in (content if isinstance(content, list) else [content])]
        text = "\n".join(part for part in parts if isinstance(part, str)).strip()
        if message.get("role") == "user" and text:
            turns.append(EarlierTurn(question=text))
        elif message.get("role") == "assistant" and text and turns:
            turns[-1] = EarlierTurn(question=turns[-1].question, answer=text)
    return turns


def _question(messages: list[dict[str, Any]]) -> tuple[str, str | None, list[dict[str, Any]]]:
    """(text, image address) of the last message of the user, and the messages before it."""
    number = max((number for number, message in enumerate(messages) if message.get("role") == "user"), default=None)
    if number is None:
        raise Refusal(422, "invalid_messages", "no message is of role user; the last such message is the question", "messages")
    content, where = messages[number].get("content"), f"messages[{number}].content"
    texts, images = [], []
    for part in content if isinstance(content, list) else [content or ""]:
        match part:
            case str(text) | {"type": "text" | "input_text", "text": str(text)}:
                texts.append(text)
            case {"type": "image_url" | "input_image", "image_url": str(url) | {"url": str(url)}}:
                images.append(url)
            case _:
                kind = str(part.get("type") if isinstance(part, dict) else part)[:40]
                raise Refusal(422, "unsupported_content", f"content of type {kind!r} is not read; expected text or image_url", where)
    text = "\n".join(texts).strip()
    if not 0 < len(text) <= MAX_QUESTION_CHARS:
        raise Refusal(422, "invalid_messages", f"the question has {len(text)} characters; expected 1 to {MAX_QUESTION_CHARS}", where)
    if len(images) > 1:
        raise Refusal(422, "too_many_images", f"{len(images)} images; one at most", where)
    return text, images[0] if images else None, messages[:number]


def cut(event: dict[str, Any], stop: list[str] | None) -> dict[str, Any]:
    """The event with its answer, if it has one, cut before the first stop sequence."""
    answer = event.get("answer", "")
    ends = [answer.index(text) for text in stop or [] if text and text in answer]
    return event | {"answer": answer[: min(ends)], "finish_reason": "stop"} if ends else event


def completion(answer: dict[str, Any], model: str) -> dict[str, Any]:
    """`chat.completion` from the data of a whole path."""
    message = {"role": "assistant", "content": answer["answer"], "refusal": None, "reasoning_content": "".join(path_lines(answer))}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": answer["finish_reason"]}
    trust = {name: answer.get(name) for name in ("confidence", "reason")}
    return {
        **_head(answer["id"], model, "chat.completion", answer["policy_version"]),
        "choices": [choice],
        "usage": answer["usage"],
        **trust,
    }


async def chunks(events: Events, body: ChatRequest, request_id: str, model: str, policy_version: int) -> Events:
    """A streamed answer: the role, a line of reasoning for each step, the answer, the finish reason; `error` when there is no answer."""
    head = _head(request_id, model, "chat.completion.chunk", policy_version)
    with_usage = bool((body.stream_options or {}).get("include_usage"))

    def chunk(delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return {**head, "choices": [choice]} | ({"usage": None} if with_usage else {})

    yield chunk({"role": "assistant", "content": ""})
    async for event in with_lines(events):
        match event["event"]:
            case "line":
                yield chunk({"reasoning_content": event["line"]})
            case "error":
                yield {"error": event["error"]}
            case "finished":
                last = cut(event, body.stop)
                yield chunk({"content": last["answer"]})
                yield chunk({}, last["finish_reason"])
                if with_usage:
                    yield {**head, "choices": [], "usage": last["usage"]}


def _head(request_id: str, model: str, kind: str, version: int) -> dict[str, Any]:
    head = {"id": f"chatcmpl-{request_id}", "object": kind, "created": int(time.time()), "model": model}
    return head | {"system_fingerprint": f"policy-{version}", "policy_version": version}


async def with_lines(events: Events) -> Events:
    """An event `line` for each line of the path as it happens; then `finished` or `error`."""
    planned: dict[str, Any] = {}
    async for event in events:
        match event["event"]:
            case "planned":
                planned = event
            case "rewritten":
                yield {"event": "line", "line": _understood(event)}
            case "answered":
                yield {"event": "line", "line": _line(planned | event)}
            case "finished" | "error":
                yield event


def path_lines(answer: dict[str, Any]) -> list[str]:
    """The path of a whole answer."""
    understood = [_understood(answer)] if answer["understood_as"] else []
    return understood + [_line(step) for step in answer["steps"] if step["kb"]]


def _understood(event: dict[str, Any]) -> str:
    return f"understood as: {event['understood_as']}\n"


def _line(step: dict[str, Any]) -> str:
    return f"{step['sub_question']} [{step['kb']}] {step['sub_answer'] or 'nothing'}\n"
