"""OpenAI's chat completions in terms of the router: the last user message is the question, the path is the reasoning, the answer the content."""

from __future__ import annotations

import time
from typing import Any

from experiments.serving.refusals import Refusal
from experiments.serving.schemas import MAX_QUESTION_CHARS, ChatRequest, ImagePart, RouteRequest

REFUSED = {
    "tools": (None, []),
    "functions": (None, []),
    "stop": (None, []),
    "logprobs": (None, False),
    "top_logprobs": (None, 0),
    "logit_bias": (None, {}),
    "response_format": (None, {"type": "text"}),
    "audio": (None,),
    "modalities": (None, ["text"]),
    "prediction": (None,),
    "presence_penalty": (None, 0),
    "frequency_penalty": (None, 0),
}
"""Parameters that would change the answer, and the values with which they do not."""


def as_route_request(asked: ChatRequest, model: str) -> RouteRequest:
    """Raises Refusal for another model, a parameter that is not offered, and messages without one question."""
    if asked.model != model:
        raise Refusal(404, "model_not_found", f"model {asked.model[:100]!r} is not served; {model!r} is", "model")
    if asked.n not in (None, 1):
        raise Refusal(422, "unsupported_value", f"n is {asked.n}; one answer is given", "n")
    for name, harmless in REFUSED.items():
        if (asked.model_extra or {}).get(name) not in harmless:
            raise Refusal(422, "unsupported_parameter", f"{name} is not offered; leave it out", name)
    question, image = _question(asked)
    return RouteRequest(
        question=question,
        image=image,
        kbs=asked.kbs,
        max_steps=asked.max_steps,
        k=asked.k,
        temperature=asked.temperature or 0.0,
        top_p=1.0 if asked.top_p is None else asked.top_p,
        max_tokens=asked.max_completion_tokens or asked.max_tokens,
        seed=asked.seed,
        timeout_s=asked.timeout_s,
        stream=bool(asked.stream),
        pictures=False,
    )


def _question(asked: ChatRequest) -> tuple[str, str | None]:
    """(text, image address) of the last message."""
    number = len(asked.messages) - 1
    message = asked.messages[number]
    if message.role != "user":
        raise Refusal(422, "invalid_messages", f"the last message is of role {message.role}; expected user", f"messages[{number}].role")
    where = f"messages[{number}].content"
    parts = [] if message.content is None or isinstance(message.content, str) else message.content
    images = [part.image_url.url for part in parts if isinstance(part, ImagePart)]
    texts = [message.content] if isinstance(message.content, str) else [part.text for part in parts if not isinstance(part, ImagePart)]
    text = "\n".join(texts).strip()
    if not 0 < len(text) <= MAX_QUESTION_CHARS:
        raise Refusal(422, "invalid_messages", f"the question has {len(text)} characters; expected 1 to {MAX_QUESTION_CHARS}", where)
    if len(images) > 1:
        raise Refusal(422, "too_many_images", f"{len(images)} images; one at most", where)
    return text, images[0] if images else None


def completion(answer: dict[str, Any], model: str) -> dict[str, Any]:
    """`chat.completion` of the data of a whole path."""
    message = {"role": "assistant", "content": answer["answer"], "refusal": None, "reasoning_content": "".join(map(_line, answer["steps"]))}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": answer["finish_reason"]}
    return {**_head(answer["id"], model, "chat.completion", answer["policy_version"]), "choices": [choice], "usage": answer["usage"]}


class Chunks:
    """The chunks of one streamed answer: the role at once, a line of reasoning for each step, the answer, the reason why it ended."""

    def __init__(self, request_id: str, model: str, policy_version: int, include_usage: bool):
        self._head = _head(request_id, model, "chat.completion.chunk", policy_version)
        self._usage = include_usage
        self._asked: dict[int, dict[str, Any]] = {}

    def opening(self) -> dict[str, Any]:
        return self._chunk({"role": "assistant", "content": ""})

    def of(self, event: dict[str, Any]) -> list[dict[str, Any]]:
        if event["event"] == "planned":
            self._asked[event["step"]] = event
        if event["event"] == "answered":
            return [self._chunk({"reasoning_content": _line(self._asked[event["step"]] | event)})]
        if event["event"] != "finished":
            return []
        chunks = [self._chunk({"content": event["answer"]}), self._chunk({}, event["finish_reason"])]
        if self._usage:
            chunks.append({**self._head, "choices": [], "usage": event["usage"]})
        return chunks

    def _chunk(self, delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
        chunk = {**self._head, "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}]}
        return chunk | ({"usage": None} if self._usage else {})


def _head(request_id: str, model: str, kind: str, policy_version: int) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{request_id}",
        "object": kind,
        "created": int(time.time()),
        "model": model,
        "system_fingerprint": f"policy-{policy_version}",
        "policy_version": policy_version,
    }


def _line(step: dict[str, Any]) -> str:
    return f"{step['sub_question']} [{step['kb']}] {step['sub_answer']}\n" if step["kb"] else ""
