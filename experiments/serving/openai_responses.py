"""OpenAI's Responses API in terms of chat completions: a reasoning item, whose summary is the path, and a message with the answer."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass
from typing import Any

from experiments.serving.openai_chat import Events, path_lines, with_lines
from experiments.serving.schemas import ChatRequest, ResponsesRequest


def as_chat(body: ResponsesRequest) -> ChatRequest:
    """Items of `input` without a role (tool calls, reasoning) are not read, nor are `instructions`."""
    messages = [{"role": "user", "content": body.input}] if isinstance(body.input, str) else body.input
    rest = body.model_dump(exclude={"input", "text", "max_output_tokens"}) | {"text.format": (body.text or {}).get("format")}
    return ChatRequest.model_validate(rest | {"messages": messages, "max_tokens": body.max_output_tokens})


@dataclass(frozen=True)
class Responses:
    """What one request is answered with."""

    request_id: str
    model: str
    policy_version: int

    def whole(self, answer: dict[str, Any]) -> dict[str, Any]:
        """`response` from the data of a whole path."""
        usage, too_long = answer["usage"], answer["finish_reason"] == "length"
        tokens = {
            "input_tokens": usage["prompt_tokens"],
            "output_tokens": usage["completion_tokens"],
            "total_tokens": usage["total_tokens"],
        }
        details = {"input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0}, "output_tokens_details": {"reasoning_tokens": 0}}
        return self._response(
            status="incomplete" if too_long else "completed",
            incomplete_details={"reason": "max_output_tokens"} if too_long else None,
            output=[self._reasoning(path_lines(answer)), self._message(answer["answer"])],
            usage=tokens | details,
        )

    async def events(self, events: Events) -> Events:
        """A part of the reasoning item for each line of the path, then the message, then the whole response; `error` when there is no answer."""
        numbers = itertools.count()

        def event_of(kind: str, **data: Any) -> dict[str, Any]:
            return {"type": kind, "sequence_number": next(numbers), **data}

        for kind in ("created", "in_progress"):
            yield event_of(f"response.{kind}", response=self._response(status="in_progress", output=[]))
        yield event_of("response.output_item.added", output_index=0, item=self._reasoning([]))
        lines: list[str] = []
        async for event in with_lines(events):
            if event["event"] == "error":
                yield event_of("error", **event["error"] | {"type": "error"})
                return
            if event["event"] == "line":
                at = {"item_id": f"rs_{self.request_id}", "output_index": 0, "summary_index": len(lines)}
                lines.append(event["line"])
                (part,) = self._reasoning(lines[-1:])["summary"]
                yield event_of("response.reasoning_summary_part.added", **at, part=part | {"text": ""})
                yield event_of("response.reasoning_summary_text.delta", **at, delta=part["text"])
                yield event_of("response.reasoning_summary_text.done", **at, text=part["text"])
                yield event_of("response.reasoning_summary_part.done", **at, part=part)
                continue
            response = self.whole(event)
            reasoning, message = response["output"]
            (part,) = message["content"]
            at = {"item_id": message["id"], "output_index": 1, "content_index": 0}
            yield event_of("response.output_item.done", output_index=0, item=reasoning)
            yield event_of("response.output_item.added", output_index=1, item=message | {"status": "in_progress", "content": []})
            yield event_of("response.content_part.added", **at, part=part | {"text": ""})
            yield event_of("response.output_text.delta", **at, delta=part["text"], logprobs=[])
            yield event_of("response.output_text.done", **at, text=part["text"], logprobs=[])
            yield event_of("response.content_part.done", **at, part=part)
            yield event_of("response.output_item.done", output_index=1, item=message)
            yield event_of(f"response.{response['status']}", response=response)

    def _response(self, **data: Any) -> dict[str, Any]:
        made = {"id": f"resp_{self.request_id}", "object": "response", "created_at": int(time.time()), "model": self.model, "error": None}
        made |= {
            "incomplete_details": None,
            "instructions": None,
            "metadata": {},
            "previous_response_id": None,
            "store": False,
            "usage": None,
        }
        made |= {"tools": [], "tool_choice": "none", "parallel_tool_calls": False, "policy_version": self.policy_version}
        return made | data

    def _reasoning(self, lines: list[str]) -> dict[str, Any]:
        return {
            "id": f"rs_{self.request_id}",
            "type": "reasoning",
            "summary": [{"type": "summary_text", "text": line.strip()} for line in lines],
        }

    def _message(self, text: str) -> dict[str, Any]:
        content = [{"type": "output_text", "text": text, "annotations": [], "logprobs": []}]
        return {"id": f"msg_{self.request_id}", "type": "message", "role": "assistant", "status": "completed", "content": content}
