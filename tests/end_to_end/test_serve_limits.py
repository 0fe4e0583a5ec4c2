"""Every limit, from outside: what is too much, too large or of the wrong kind gets its 4xx, and what comes after it is served."""

from __future__ import annotations

import base64
import io
import json
import struct
import threading
import zlib

import pytest
from PIL import Image

JSON = {"content-type": "application/json"}


def data_url(size: tuple[int, int] = (8, 8), kind: str = "PNG") -> str:
    file = io.BytesIO()
    Image.new("RGB", size, "red").save(file, kind)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def bomb(width: int, height: int) -> str:
    """A PNG of a few bytes that says it is huge."""
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))  # noqa: E731
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


BAD = {
    "not_json": (b"{", 400, "invalid_json"),
    "not_text": (b"\xff\xfe", 400, "invalid_json"),
    "deep": (b"[" * 100_000, 400, "invalid_json"),
    "no_object": (b'"Q"', 422, "invalid_value"),
    "nothing": (b"{}", 422, "invalid_value"),
    "blank": (b'{"question": "  "}', 422, "invalid_value"),
    "number": (b'{"question": 7}', 422, "invalid_value"),
    "long": (json.dumps({"question": "x" * 4001}).encode(), 422, "invalid_value"),
    "unknown_key": (b'{"question": "Q", "kb": "text"}', 422, "invalid_value"),
    "unknown_kb": (b'{"question": "Q", "kbs": ["video"]}', 422, "unknown_knowledge_base"),
    "no_kb": (b'{"question": "Q", "kbs": []}', 422, "invalid_value"),
    "steps": (b'{"question": "Q", "max_steps": 9}', 422, "invalid_value"),
    "steps_kind": (b'{"question": "Q", "max_steps": true}', 422, "invalid_value"),
    "k": (b'{"question": "Q", "k": 0}', 422, "invalid_value"),
    "tokens": (b'{"question": "Q", "max_tokens": 0}', 422, "invalid_value"),
    "temperature": (b'{"question": "Q", "temperature": NaN}', 422, "invalid_value"),
    "foreign": (b'{"question": "Q", "image": "http://example.org/a.png"}', 422, "invalid_image_url"),
    "private": (b'{"question": "Q", "image": "http://169.254.169.254/latest"}', 422, "invalid_image_url"),
    "file": (b'{"question": "Q", "image": "file:///etc/passwd"}', 422, "invalid_image_url"),
    "no_base64": (b'{"question": "Q", "image": "data:image/png;base64,!!!!"}', 422, "invalid_image"),
    "no_image": (b'{"question": "Q", "image": "data:image/png;base64,AAAA"}', 422, "invalid_image"),
    "svg": (b'{"question": "Q", "image": "data:image/svg+xml;base64,AAAA"}', 422, "invalid_image"),
    "gif": (json.dumps({"question": "Q", "image": data_url(kind="GIF")}).encode(), 422, "invalid_image"),
    "pixels": (json.dumps({"question": "Q", "image": data_url((2000, 1000))}).encode(), 413, "image_too_large"),
    "bomb": (json.dumps({"question": "Q", "image": bomb(65000, 65000)}).encode(), 413, "image_too_large"),
    "cut_off": (json.dumps({"question": "Q", "image": bomb(900, 900)}).encode(), 422, "invalid_image"),
    "thin": (json.dumps({"question": "Q", "image": data_url((2000, 2))}).encode(), 422, "invalid_image"),
    "body": (b'{"question": "' + b"x" * 2**20 + b'"}', 413, "body_too_large"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_answered_is_refused_in_one_line(client, name):
    body, status, code = BAD[name]
    refused = client.post("/v1/route", content=body, headers=JSON)
    error = refused.json()["error"]
    assert (refused.status_code, error["code"]) == (status, code)
    assert "\n" not in error["message"]
    assert len(error["message"]) < 400
    assert {"message", "type", "param", "code"} == error.keys()


def test_a_prompt_that_can_never_fit_is_the_caller_s_fault(client, service):
    refused = client.post("/v1/route", json={"question": "zq " * 1300, "max_steps": 0, "stream": True})
    assert refused.status_code in (200, 422)
    if refused.status_code == 422:
        assert refused.json()["error"]["code"] == "context_length_exceeded"


def test_only_json_is_read_so_that_no_other_site_can_make_a_browser_ask(client):
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
        refused = client.post("/v1/route", content=b'{"question": "Q"}', headers={"content-type": kind})
        assert refused.status_code == 415
    preflight = client.options("/v1/route", headers={"origin": "http://evil.example", "access-control-request-method": "POST"})
    assert "access-control-allow-origin" not in preflight.headers


def test_another_name_than_localhost_gets_nothing(client):
    assert client.get("/health", headers={"host": "evil.example"}).status_code == 421
    assert client.get("/health", headers={"host": "localhost:1234"}).status_code == 200


def test_an_unknown_length_does_not_get_around_the_limit_of_the_body(client):
    def endless():
        for _ in range(40):
            yield b" " * 2**16

    refused = client.post("/v1/route", content=endless(), headers=JSON)
    assert refused.status_code == 413


def test_what_is_not_there_says_so(client):
    assert client.get("/v1/route").status_code == 405
    assert client.get("/nowhere").json()["error"]["code"] == "not_found"
    for not_offered in ("completions", "moderations", "embeddings"):
        assert client.post(f"/v1/{not_offered}", json={}).json()["error"]["code"] == "not_found"


def test_more_questions_than_there_is_room_for_are_told_to_come_back(client, service, text_question):
    """6 slots and 6 places in the queue: of 40 questions at once some are answered, the others get 429 at once, none hangs or fails."""
    answers: list = []

    def ask() -> None:
        with service.client() as own:
            answers.append(own.post("/v1/route", json={"question": text_question.text}))

    threads = [threading.Thread(target=ask) for _ in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    statuses = [answer.status_code for answer in answers]
    assert len(statuses) == 40
    assert set(statuses) == {200, 429}
    assert all(answer.headers["retry-after"] == "1" for answer in answers if answer.status_code == 429)
    assert len({answer.json()["answer"] for answer in answers if answer.status_code == 200}) == 1


def test_a_deadline_is_kept(client, text_question):
    refused = client.post("/v1/route", json={"question": text_question.text, "timeout_s": 0.001})
    assert (refused.status_code, refused.json()["error"]["code"]) == (408, "deadline_exceeded")
    assert client.post("/v1/route", json={"question": text_question.text}).status_code == 200


def test_the_page_comes_with_a_policy_that_allows_nothing_else(client):
    page = client.get("/")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "sha256-" in policy
    assert page.headers["x-frame-options"] == "DENY"
    for foreign in ("http://", "https://", "//cdn", "innerHTML", "insertAdjacentHTML", "document.write", "eval("):
        assert foreign not in page.text
