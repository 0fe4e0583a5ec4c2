"""What `POST /v1/route` takes and gives, as data: nothing here knows of HTTP servers or models."""

from __future__ import annotations

import base64
import binascii
import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image as PillowImage
from PIL import UnidentifiedImageError

from rollout.records import Image, Step, Trajectory, Turn

MAX_QUESTION_CHARS = 4000
MAX_STEPS = 8
MAX_PIXELS = 16_000_000
MAX_BODY_BYTES = 16 * 2**20
KEYS = ("question", "image", "kbs", "max_steps")
DATA_URL = re.compile(r"data:image/(?:png|jpeg);base64,(.*)", re.S)
THOUGHT = re.compile(r"<think>(.*?)</think>", re.S)


class RouteRequestError(ValueError):
    """A request that cannot be answered; the message is one line for the caller, `status` the HTTP code."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class RouteRequest:
    question: str
    image: Image | None
    kbs: tuple[str, ...]
    """Knowledge bases that may be asked."""
    max_steps: int
    """Retrievals that may be made."""


def read_request(body: bytes, known_kbs: Sequence[str], default_steps: int) -> RouteRequest:
    """Raises RouteRequestError: 413 for a body that is too large, 400 for one that is no JSON object, 422 for a value that does not fit."""
    if len(body) > MAX_BODY_BYTES:
        raise RouteRequestError(413, f"the body is larger than {MAX_BODY_BYTES} bytes")
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError):
        raise RouteRequestError(400, "the body is not JSON; expected an object with the key question") from None
    if not isinstance(asked, dict):
        raise RouteRequestError(400, f"the body is a JSON {type(asked).__name__}; expected an object with the key question")
    if unknown := sorted(asked.keys() - set(KEYS)):
        raise RouteRequestError(422, f"unknown key {unknown[0]!r}; known are {', '.join(KEYS)}")
    question = asked.get("question")
    if not isinstance(question, str) or not 0 < len(question.strip()) <= MAX_QUESTION_CHARS:
        raise RouteRequestError(422, f"question must be a text of 1 to {MAX_QUESTION_CHARS} characters")
    kbs = asked.get("kbs")
    if kbs is not None and not (isinstance(kbs, list) and kbs and all(kb in known_kbs for kb in kbs)):
        raise RouteRequestError(422, f"kbs must be a list of some of {', '.join(known_kbs)}")
    steps = asked.get("max_steps")
    if steps is not None and not (type(steps) is int and 0 <= steps <= MAX_STEPS):
        raise RouteRequestError(422, f"max_steps must be a whole number from 0 to {MAX_STEPS}")
    image = asked.get("image")
    return RouteRequest(
        question=question.strip(),
        image=None if image is None else _picture(image),
        kbs=tuple(known_kbs if kbs is None else dict.fromkeys(kbs)),
        max_steps=default_steps if steps is None else steps,
    )


def _picture(url: object) -> Image:
    match = DATA_URL.fullmatch(url) if isinstance(url, str) else None
    if not match:
        raise RouteRequestError(422, "image must be a data URL: data:image/png;base64,... or data:image/jpeg;base64,...")
    try:
        data = base64.b64decode(match[1], validate=True)
        with PillowImage.open(io.BytesIO(data), formats=("PNG", "JPEG")) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise RouteRequestError(413, f"image has {picture.width} x {picture.height} pixels, more than {MAX_PIXELS}")
            picture.load()
    except (binascii.Error, UnidentifiedImageError, OSError, SyntaxError, PillowImage.DecompressionBombError):
        raise RouteRequestError(422, "image does not decode: expected the base64 of a PNG or JPEG") from None
    return Image.of(data)


def as_data(trajectory: Trajectory, seconds: float) -> dict[str, Any]:
    """The trajectory as the caller gets it. A step without a knowledge base is the decision to stop, or a malformed plan turn."""
    final = trajectory.final
    return {
        "answer": trajectory.answer,
        "thought": _thought(final),
        "steps": [_step_data(step) for step in trajectory.steps],
        "retrievals": trajectory.retrievals,
        "search_errors": trajectory.search_errors,
        "policy_version": final.policy_version if final else None,
        "seconds": round(seconds, 4),
    }


def _step_data(step: Step) -> dict[str, Any]:
    asked = step.action if step.action and step.action.kb else None
    return {
        "thought": _thought(step.plan),
        "decision": "malformed" if step.action is None else "retrieve" if asked else "stop",
        "sub_question": asked.query if asked else None,
        "kb": asked.kb if asked else None,
        "passages": [
            {"id": passage.id, "title": passage.title, "text": passage.text, "score": round(passage.score, 6), "error": passage.error}
            for passage in step.passages
        ],
        "answer_thought": _thought(step.answer),
        "sub_answer": step.exchange.answer if step.exchange else None,
    }


def _thought(turn: Turn | None) -> str | None:
    match = THOUGHT.search(turn.text) if turn else None
    return match[1].strip() if match else None
