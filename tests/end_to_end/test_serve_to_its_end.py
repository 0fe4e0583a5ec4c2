"""A service with a key, and how it ends."""

from __future__ import annotations

import threading
import time

import httpx
import openai
import pytest
from serving_process import started

KEY = "a-key-for-this-test"


@pytest.mark.slow
def test_with_a_key_it_asks_for_it_and_when_told_to_stop_it_answers_what_is_under_way(tmp_path, monkeypatch, world):
    monkeypatch.setenv("R1_ROUTER_API_KEY", KEY)
    questions = [question.text for question in world.questions(30, 0) if question.image is None][:8]
    with started(tmp_path, "serve.slots=2") as service:
        assert httpx.post(f"{service.url}/v1/route", json={"question": questions[0]}).status_code == 401
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=f"{service.url}/v1", api_key="another", max_retries=0).models.list()
        assert openai.OpenAI(base_url=f"{service.url}/v1", api_key=KEY).models.list().data
        with httpx.Client(base_url=service.url, headers={"authorization": f"Bearer {KEY}"}, timeout=60) as client:
            answers: list[httpx.Response] = []
            threads = [
                threading.Thread(target=lambda text=text: answers.append(client.post("/v1/route", json={"question": text})))
                for text in questions
            ]
            for thread in threads:
                thread.start()
            end = time.monotonic() + 20
            while httpx.get(f"{service.url}/health").json()["under_way"] + len(answers) < len(questions):
                assert time.monotonic() < end
                time.sleep(0.01)
            service.stop()
            for thread in threads:
                thread.join(timeout=60)
        assert [answer.status_code for answer in answers] == [200] * len(questions)
        assert KEY not in service.said.read_text()
        assert KEY not in service.requests.read_text()
