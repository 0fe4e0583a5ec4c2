"""Who gets in: the real gate and routes, asked without a server. Nothing is loaded, so a question that gets in is told so (503)."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict

import httpx
import pytest

from experiments.config import RunConfigError
from experiments.serving.endpoint import Endpoint
from experiments.serving.settings import ServeSettings, check, key_digest, public

KEY = "a-long-key"


def ask(method: str, path: str, headers: dict | None = None, key: str = KEY, **settings) -> httpx.Response:
    endpoint = Endpoint(None, None, asdict(ServeSettings(**settings)), key_digest(key), [{"question": "Q"}])

    async def asked() -> httpx.Response:
        transport = httpx.ASGITransport(endpoint.__serve_build_asgi_app__())
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.request(method, path, headers=headers, json={"question": "Q"} if method == "POST" else None)

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


@pytest.mark.parametrize("host", ["0.0.0.0", "10.0.0.7", "::", "example.org"])
def test_no_other_address_than_loopback_without_a_key(host, monkeypatch):
    monkeypatch.delenv("R1_ROUTER_API_KEY", raising=False)
    with pytest.raises(RunConfigError, match=r"set serve\.api_key or R1_ROUTER_API_KEY"):
        check(ServeSettings(host=host))
    check(ServeSettings(host=host, api_key=KEY))
    monkeypatch.setenv("R1_ROUTER_API_KEY", KEY)
    check(ServeSettings(host=host))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.9", "localhost", "::1"])
def test_loopback_needs_no_key_unless_one_is_required(host, monkeypatch):
    monkeypatch.delenv("R1_ROUTER_API_KEY", raising=False)
    check(ServeSettings(host=host))
    with pytest.raises(RunConfigError, match="require_api_key"):
        check(ServeSettings(host=host, require_api_key=True))


def test_the_key_is_in_no_data_that_is_written():
    assert KEY not in json.dumps(public(asdict(ServeSettings(api_key=KEY))))
    assert KEY not in key_digest(KEY)
