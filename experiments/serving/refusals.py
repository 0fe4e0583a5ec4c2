"""Errors of the API, in the form that OpenAI's clients know: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

from typing import Any

TYPES = {401: "authentication_error", 429: "rate_limit_error", 500: "server_error", 503: "service_unavailable_error", 504: "timeout_error"}
"""Status -> type; all others are the caller's: `invalid_request_error`."""


class Refusal(Exception):
    """A request that gets an error for an answer. `message` is one line for the caller, `code` a word for programs."""

    def __init__(self, status: int, code: str, message: str, param: str | None = None, retry_after_s: int | None = None):
        super().__init__(message)
        self.status, self.code, self.message, self.param, self.retry_after_s = status, code, message, param, retry_after_s

    def body(self) -> dict[str, Any]:
        kind = TYPES.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def headers(self) -> dict[str, str]:
        return {} if self.retry_after_s is None else {"retry-after": str(self.retry_after_s)}


def too_busy(waiting: int) -> Refusal:
    return Refusal(429, "rate_limit_exceeded", f"{waiting} questions are under way or waiting; try again in a second", retry_after_s=1)


def unavailable(code: str, message: str) -> Refusal:
    return Refusal(503, code, message, retry_after_s=2)


def too_late(seconds: float, asked: bool) -> Refusal:
    """`asked`: the caller allowed no more (408), not the service (504)."""
    return Refusal(408 if asked else 504, "deadline_exceeded", f"no answer within {seconds:g} s; ask for fewer steps, or later")
