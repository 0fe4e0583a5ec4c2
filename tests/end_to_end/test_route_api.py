"""What the endpoint refuses, and in which words."""

from __future__ import annotations

import base64
import io
import json

import pytest
from PIL import Image

from experiments.route_api import RouteRequestError, read_request

KBS = ["text", "table"]


def data_url(size=(4, 4), kind="PNG") -> str:
    file = io.BytesIO()
    Image.new("RGB", size, "red").save(file, kind)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def test_a_question_alone_may_use_everything():
    asked = read_request(b'{"question": " Who leads Meltoria? "}', KBS, default_steps=3)
    assert (asked.question, asked.image, asked.kbs, asked.max_steps) == ("Who leads Meltoria?", None, ("text", "table"), 3)


def test_knowledge_bases_steps_and_a_picture_can_be_said():
    body = {"question": "Q", "image": data_url(kind="JPEG"), "kbs": ["table", "table"], "max_steps": 0}
    asked = read_request(json.dumps(body).encode(), KBS, default_steps=3)
    assert asked.image is not None
    assert (asked.kbs, asked.max_steps) == (("table",), 0)


@pytest.mark.parametrize(
    ("body", "status", "finding"),
    [
        (b"{", 400, "not JSON"),
        (b"\xff\xfe", 400, "not JSON"),
        (b"[" * 100_000, 400, "not JSON"),
        (b'"Q"', 400, "JSON str"),
        (b"{}", 422, "question must be a text"),
        (b'{"question": "  "}', 422, "question must be a text"),
        (json.dumps({"question": "x" * 4001}).encode(), 422, "1 to 4000 characters"),
        (b'{"question": "Q", "temperature": 1}', 422, "unknown key 'temperature'"),
        (b'{"question": "Q", "kbs": ["video"]}', 422, "some of text, table"),
        (b'{"question": "Q", "kbs": []}', 422, "some of text, table"),
        (b'{"question": "Q", "kbs": [{}]}', 422, "some of text, table"),
        (b'{"question": "Q", "max_steps": 99}', 422, "from 0 to 8"),
        (b'{"question": "Q", "max_steps": true}', 422, "from 0 to 8"),
        (b'{"question": "Q", "image": "http://example.org/a.png"}', 422, "must be a data URL"),
        (b'{"question": "Q", "image": "data:image/png;base64,!!!!"}', 422, "does not decode"),
        (b'{"question": "Q", "image": "data:image/png;base64,AAAA"}', 422, "does not decode"),
        (json.dumps({"question": "Q", "image": data_url((8000, 8000))}).encode(), 413, "8000 x 8000 pixels"),
        (b" " * (16 * 2**20 + 1), 413, "larger than"),
    ],
)
def test_what_cannot_be_answered_is_refused_in_one_line(body, status, finding):
    with pytest.raises(RouteRequestError, match=finding) as refusal:
        read_request(body, KBS, default_steps=3)
    assert refusal.value.status == status
    assert "\n" not in str(refusal.value)
