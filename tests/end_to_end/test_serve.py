"""The endpoint: a real Serve, a real policy and knowledge bases, asked over HTTP."""

from __future__ import annotations

import base64
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from experiments.atlas import KNOWLEDGE_BASES, Atlas
from experiments.serve import main

POLICY = Path(__file__).parents[2] / "experiments/cold_start_policy"


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture(scope="module")
def world() -> Atlas:
    return Atlas("heldout", seed=0, worlds=1, countries=6)


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    """The command as a user runs it, on the knowledge bases of a small atlas; ended as Ctrl-C ends it."""
    folder, port = tmp_path_factory.mktemp("served"), free_port()
    command = [sys.executable, "-m", "experiments.serve", str(POLICY), f"serve.port={port}"]
    command += [f"data.kb_folder={folder}", "data.worlds=1", "data.countries=6"]
    said = folder / "serve.log"
    with said.open("w") as log:
        process = subprocess.Popen(command, cwd=POLICY.parents[1], stdout=log, stderr=log)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            end = time.monotonic() + 240
            while not is_ready(client):
                assert process.poll() is None, said.read_text()[-3000:]
                assert time.monotonic() < end, said.read_text()[-3000:]
                time.sleep(0.5)
            yield client
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=90) == 0, said.read_text()[-3000:]
    finally:
        process.kill()


def is_ready(client: httpx.Client) -> bool:
    try:
        return client.get("/health", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def test_health_says_what_is_served(client):
    health = client.get("/health")
    assert health.status_code == 200
    assert health.json()["status"] == "ok"
    assert {kb["name"] for kb in health.json()["kbs"]} == {"text", "text_image", "table"}
    assert all(kb["passages"] and kb["fingerprint"] for kb in health.json()["kbs"])


def test_a_question_is_answered_with_the_whole_trajectory_the_same_every_time(client, world):
    question = next(question for question in world.questions(64, 0) if question.image is None and question.gold_steps)
    first, second = (client.post("/v1/route", json={"question": question.text}).json() for _ in range(2))
    assert first["answer"]
    assert first["policy_version"] == 0
    assert first["seconds"] > 0
    step = first["steps"][0]
    assert step["decision"] == "retrieve"
    assert step["sub_question"]
    assert step["sub_answer"]
    assert step["kb"] in KNOWLEDGE_BASES
    assert {"id", "title", "text", "score", "error"} == step["passages"][0].keys()
    assert not any(passage["error"] for step in first["steps"] for passage in step["passages"])
    assert first | {"seconds": 0} == second | {"seconds": 0}


def test_a_picture_is_looked_at(client, world):
    question = next(question for question in world.questions(64, 0) if question.image is not None)
    image = f"data:image/png;base64,{base64.b64encode(question.image.data).decode()}"
    answered = client.post("/v1/route", json={"question": question.text, "image": image})
    assert answered.status_code == 200
    assert answered.json()["answer"]


def test_only_allowed_knowledge_bases_are_asked_and_steps_are_bounded(client, world):
    question = next(question for question in world.questions(64, 0) if question.gold_steps)
    for kbs in (["table"], ["text", "text_image"]):
        steps = client.post("/v1/route", json={"question": question.text, "kbs": kbs, "max_steps": 1}).json()["steps"]
        asked = [step["kb"] for step in steps if step["decision"] == "retrieve"]
        assert len(asked) <= 1
        assert set(asked) <= set(kbs)
    answered = client.post("/v1/route", json={"question": question.text, "max_steps": 0}).json()
    assert (answered["retrievals"], answered["steps"]) == (0, [])


def test_bad_requests_get_a_line_and_a_4xx(client):
    for body, status in [(b"no json", 400), (b'{"question": 7}', 422), (b'{"question": "' + b"x" * (17 * 2**20) + b'"}', 413)]:
        refused = client.post("/v1/route", content=body)
        assert refused.status_code == status
        assert "\n" not in refused.json()["error"]
    assert client.get("/v1/route").status_code == 405
    assert client.get("/nowhere").status_code == 404


def test_what_cannot_be_served_is_refused_before_anything_starts(tmp_path, capsys):
    (tmp_path / "kb").mkdir()
    for arguments, finding in [
        ([], "which policy?"),
        ([str(tmp_path / "none")], "none"),
        ([str(POLICY), "serve.prt=1"], "unknown key prt; did you mean port?"),
        ([str(POLICY), f"retrieval.folders.text={tmp_path / 'kb'}"], "kb.json is missing"),
    ]:
        assert main(arguments) == 2
        said = capsys.readouterr().out
        assert finding in said
        assert said.count("\n") == 1
