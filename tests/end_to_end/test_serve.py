"""The endpoint: a real Serve, a real policy and knowledge bases, asked over HTTP."""

from __future__ import annotations

import base64
import socket
from pathlib import Path

import httpx
import pytest

from experiments.atlas import KNOWLEDGE_BASES, Atlas
from experiments.datasets import EMBEDDERS
from experiments.serve import main, prepare, serving
from retrieval_actors.build import build_knowledge_base

POLICY = Path(__file__).parents[2] / "experiments/cold_start_policy"


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture(scope="module")
def world() -> Atlas:
    return Atlas("heldout", seed=3, worlds=1, countries=8)


@pytest.fixture(scope="module")
def client(ray_cluster, world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    arguments = [str(POLICY), f"serve.port={free_port()}"]
    for kb, (retriever_name, description) in KNOWLEDGE_BASES.items():
        card = {"name": kb, "retriever_name": retriever_name, "description": description, "modality": kb}
        build_knowledge_base(world.passages(kb), folder / kb, embedder_name=EMBEDDERS[kb], **card)
        arguments.append(f"retrieval.folders.{kb}={folder / kb}")
    with serving(prepare(arguments)) as address, httpx.Client(base_url=address, timeout=60) as client:
        yield client


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
