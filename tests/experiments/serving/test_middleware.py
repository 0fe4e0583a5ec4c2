"""Who gets in: the real gate and routes, asked without a server. Nothing is loaded, so a question that gets in is told so (503)."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest

from experiments.config import RunConfigError
from experiments.serving.application import check
from experiments.serving.endpoint import Endpoint
from experiments.serving.settings import ServeSettings, key_digest

KEY = "a-long-key"


def ask(
    method: str, path: str, headers: dict | None = None, key: str = KEY, content: bytes = b'{"question": "Q"}', **settings
) -> httpx.Response:
    endpoint = Endpoint(None, None, ServeSettings(**settings), key_digest(key), [{"question": "Q"}])

    async def asked() -> httpx.Response:
        transport = httpx.ASGITransport(endpoint.__serve_build_asgi_app__())
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            kind = {"content-type": "application/json"} if method == "POST" else {}
            return await client.request(method, path, headers=kind | (headers or {}), content=content if method == "POST" else None)

    return asyncio.run(asked())


@pytest.mark.parametrize("path", ["/v1/models", "/v1/examples", "/metrics", "/openapi.json", "/nowhere"])
@pytest.mark.parametrize("sent", [None, "", "Bearer", "Bearer ", "Bearer wrong", f"Basic {KEY}", KEY, f"Bearer {KEY}x", "Bearer \xff"])
def test_nothing_is_said_without_the_key(path, sent):
    answered = ask("GET", path, {} if sent is None else {"authorization": sent.encode("latin-1")})
    assert answered.status_code == 401
    assert answered.json()["error"]["code"] == "invalid_api_key"
    assert answered.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("path", ["/v1/route", "/v1/chat/completions", "/v1/admin/reload"])
def test_no_question_is_taken_without_the_key(path):
    assert ask("POST", path).status_code == 401


def test_with_the_key_everything_is_open():
    sent = {"authorization": f"Bearer {KEY}"}
    assert ask("GET", "/v1/models", sent).status_code == 200
    assert ask("GET", "/v1/examples", sent).json() == {"data": [{"question": "Q"}]}
    asked = ask("POST", "/v1/route", sent)
    assert (asked.status_code, asked.json()["error"]["code"], asked.headers["retry-after"]) == (503, "starting", "2")


def test_the_page_and_how_far_it_is_can_be_seen_without_the_key():
    assert ask("GET", "/").status_code == 200
    health = ask("GET", "/health")
    assert (health.status_code, health.json()["status"], health.json()["kbs"]) == (503, "starting", [])


def test_where_no_key_is_set_none_is_asked_for():
    assert ask("GET", "/v1/models", key="").status_code == 200


def test_on_another_address_than_loopback_any_name_will_do():
    assert ask("GET", "/v1/models", {"host": "router.example", "authorization": f"Bearer {KEY}"}, host="0.0.0.0").status_code == 200
    assert ask("GET", "/v1/models", {"host": "router.example", "authorization": f"Bearer {KEY}"}).status_code == 421


@pytest.mark.parametrize("name", ["localhost", "LOCALHOST:80", "127.0.0.1:8000", "127.0.0.9", "[::1]", "[::1]:8000", ""])
def test_on_loopback_it_answers_to_every_name_of_loopback(name):
    assert ask("GET", "/health", {"host": name}).status_code == 503
    for elsewhere in ("127.0.0.1.example", "localhost.example:80", "[::2]", "1127.0.0.1", "127.0.0.1:80:80"):
        assert ask("GET", "/health", {"host": elsewhere}).status_code == 421


@pytest.mark.parametrize(
    "path", ["/", "/health", "/v1/models", "/v1/models/NAME", "/v1/examples", "/metrics", "/openapi.json", "/v1/route"]
)
def test_head_says_what_get_says_without_the_body(path):
    path = path.replace("NAME", "m")
    head, get = (ask(method, path, key="", model="m") for method in ("HEAD", "GET"))
    assert (head.status_code, head.headers["content-type"], head.content) == (get.status_code, get.headers["content-type"], b"")
    assert get.content


@pytest.mark.parametrize("name", ["m", "org/m", "org%2Fm"])
def test_a_model_is_described_by_its_name_and_no_other(name):
    served = ask("GET", f"/v1/models/{name}", key="", model=name.replace("%2F", "/"))
    assert (served.status_code, served.json()["id"], served.json()["object"]) == (200, name.replace("%2F", "/"), "model")
    other = ask("GET", f"/v1/models/{name}2", key="", model=name)
    assert (other.status_code, other.json()["error"]["code"], other.json()["error"]["param"]) == (404, "model_not_found", "model")
    assert ask("GET", f"/v1/models/{name}").status_code == 401


@pytest.mark.parametrize("path", ["/v1/route/", "http://localhost//v1/route", "/v1//route//"])
def test_slashes_too_many_are_no_other_address(path):
    assert ask("POST", path, key="").json()["error"]["code"] == "starting"
    assert ask("POST", path).status_code == 401


@pytest.mark.parametrize("kind", ["application/json", "application/json; charset=utf-8", "Application/JSON ;charset=UTF-8", ""])
def test_json_is_taken_by_all_its_names(kind):
    assert ask("POST", "/v1/route", {"content-type": kind}, key="").json()["error"]["code"] == "starting"


@pytest.mark.parametrize(
    "sent", [{"content-type": "text/plain"}, {"content-type": "", "origin": "http://evil.example"}, {"content-encoding": "gzip"}]
)
def test_what_a_page_from_elsewhere_could_send_and_compressed_bodies_are_not_read(sent):
    assert ask("POST", "/v1/route", sent, key="").status_code == 415


@pytest.mark.parametrize(
    "content", [b'{"question": "Q", "\\ud83d": 1}', b'{"question": "Q", "kbs": ["\\ud83d"]}', b'{"question": "Q", "a\\nb": 1}']
)
def test_an_error_is_one_line_whatever_was_sent(content):
    refused = ask("POST", "/v1/route", key="", content=content)
    assert refused.status_code == 422
    assert "\n" not in refused.json()["error"]["message"]


def test_half_an_emoji_at_the_end_of_a_question_does_no_harm():
    assert ask("POST", "/v1/route", key="", content=b'{"question": "Which flag? \\ud83d"}').json()["error"]["code"] == "starting"


def test_null_is_the_same_as_not_said():
    names = ("image", "kbs", "max_steps", "k", "temperature", "top_p", "max_tokens", "seed", "timeout_s", "stream", "pictures")
    content = json.dumps({"question": "Q", **dict.fromkeys(names)}).encode()
    assert ask("POST", "/v1/route", key="", content=content).json()["error"]["code"] == "starting"


@pytest.mark.parametrize("host", ["0.0.0.0", "10.0.0.7", "::", "example.org"])
def test_no_other_address_than_loopback_without_a_key(host, monkeypatch):
    monkeypatch.delenv("R1_ROUTER_API_KEY", raising=False)
    with pytest.raises(RunConfigError, match=r"serve\.host"):
        check(ServeSettings(host=host))
    check(ServeSettings(host=host, api_key=KEY))
    monkeypatch.setenv("R1_ROUTER_API_KEY", KEY)
    check(ServeSettings(host=host))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.9", "localhost", "::1"])
def test_loopback_needs_no_key(host, monkeypatch):
    monkeypatch.delenv("R1_ROUTER_API_KEY", raising=False)
    check(ServeSettings(host=host))


def test_a_key_is_read_without_the_blanks_around_it_and_has_no_letters_that_headers_do_not_carry(monkeypatch):
    monkeypatch.setenv("R1_ROUTER_API_KEY", f" {KEY}\n")
    assert ServeSettings().key() == KEY
    with pytest.raises(RunConfigError, match="expected ASCII") as refused:
        check(ServeSettings(api_key="schl\u00fcssel"))
    assert "schl" not in str(refused.value)
