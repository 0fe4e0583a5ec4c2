"""The doctor: a good set-up, broken ones, and what each is told to do."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path

import pytest

from experiments import doctor
from experiments.cluster.doctor_checks import all_findings, check_object_stores
from experiments.cluster.findings import Finding, any_fails
from experiments.config import REPOSITORY, load_config
from retrieval_actors.build.from_passages import write_knowledge_base
from retrieval_actors.records import Passage


@pytest.fixture
def settings(tmp_path, monkeypatch) -> list[str]:
    """A set-up in which nothing is missing."""
    for name in ("RAY_ADDRESS", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    return [
        "smoke.yaml",
        f"data.kb_folder={tmp_path / 'kbs'}",
        f"runs_folder={tmp_path}",
        f"tracking.uri=sqlite:///{tmp_path / 'mlflow.db'}",
        "ray.object_store_mb=80",
    ]


@pytest.fixture
def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def kb(folder: Path, name: str, embedder: str = "minilm") -> Path:
    import numpy as np

    vectors = np.eye(4, 384, dtype=np.float32)
    passages = [Passage(str(row), f"passage {row}") for row in range(4)]
    card = {"retriever_name": "R", "description": "", "modality": "text", "embedder": embedder}
    write_knowledge_base(folder, name=name, passages=passages, vectors=vectors, shards=2, **card)
    return folder


def told(found: list[Finding], what: str) -> list[Finding]:
    return [finding for finding in found if finding.what == what and finding.fix]


def examined(*arguments: str, **more) -> list[Finding]:
    return list(all_findings(load_config(list(arguments)), **more))


def test_a_good_set_up_is_ready(settings, capsys):
    assert doctor.main(settings) == 0
    out = capsys.readouterr().out
    assert "ready" in out
    assert "fail" not in out.split("ready")[0].replace("failures", "")


def test_findings_as_json_name_status_and_fix(settings, capsys):
    assert doctor.main([*settings, "--json"]) == 0
    findings = json.loads(capsys.readouterr().out)
    looked_at = "Python torch ray CUDA faiss-cpu disk Ray policy data placement MLflow".split()
    assert {finding["what"] for finding in findings} >= set(looked_at)
    assert {finding["status"] for finding in findings} <= {"ok", "warn"}


def test_a_configuration_that_cannot_be_used_ends_with_2(capsys):
    assert doctor.main(["smoke.yaml", "train.iteratons=2"]) == 2
    assert doctor.main(["smoke.yaml", "train.iteratons=2", "--json"]) == 2
    assert "did you mean train.iterations?" in capsys.readouterr().out


def test_a_policy_that_is_nowhere(settings):
    (finding,) = told(examined(*settings, "train.policy=./nowhere"), "policy")
    assert finding.status == "fail"
    assert "a folder with a config.json" in finding.fix


def test_a_policy_on_a_hub_that_is_out_of_reach(settings, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    began = time.monotonic()
    (finding,) = told(examined(*settings, "train.policy=nobody/nothing-of-that-name"), "policy")
    assert finding.status == "fail"
    assert "hf download nobody/nothing-of-that-name" in finding.fix
    assert time.monotonic() - began < 60


def test_a_package_of_another_version_than_the_tested_one(settings, tmp_path):
    pins = tmp_path / "constraints.txt"
    pins.write_text((REPOSITORY / "constraints.txt").read_text().replace("pydantic==", "pydantic==9."))
    found = examined(*settings, constraints=pins)
    (finding,) = told(found, "pydantic")
    assert (finding.status, "tested with 9." in finding.fix, any_fails(found)) == ("warn", True, False)


def test_a_ray_head_that_nobody_answers_for(settings, monkeypatch, free_port):
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{free_port}")
    (finding,) = told(examined(*settings), "Ray")
    assert finding.status == "fail"
    assert f"nothing answers at RAY_ADDRESS=127.0.0.1:{free_port}" in finding.found
    assert "unset it" in finding.fix


@pytest.mark.parametrize(
    ("broken", "found", "fix"),
    [
        (lambda folder: (folder / "vectors-00001.npy").unlink(), "vectors-00001.npy is missing", "build it again"),
        (lambda folder: (folder / "kb.json").write_text("{"), "kb.json is no JSON", "build it again"),
    ],
)
def test_a_knowledge_base_that_is_not_whole(settings, tmp_path, broken, found, fix):
    broken(kb(tmp_path / "mine", "text"))
    (finding,) = told(examined(*settings, f"retrieval.folders.text={tmp_path / 'mine'}"), "knowledge base text")
    assert finding.status == "fail"
    assert found in finding.found
    assert fix in finding.fix


@pytest.mark.parametrize(
    ("name", "embedder", "found"),
    [("text", "word2vec", "word2vec"), ("other", "minilm", "names 'other'")],
)
def test_a_knowledge_base_of_another_embedder_or_name(settings, tmp_path, name, embedder, found):
    folder = kb(tmp_path / "mine", name, embedder)
    (finding,) = told(examined(*settings, f"retrieval.folders.text={folder}"), "knowledge base text")
    assert found in finding.found
    assert finding.status == "fail"


def test_a_tracking_server_that_does_not_answer(settings, free_port):
    (finding,) = told(examined(*settings, f"tracking.uri=http://127.0.0.1:{free_port}"), "MLflow")
    assert (finding.status, "does not answer" in finding.found) == ("warn", True)
    assert "tracking.mlflow=false" in finding.fix


def test_gpus_that_are_not_there(settings):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    (finding,) = told(examined(*settings, "learner.gpus_per_learner=1"), "CUDA")
    assert finding.status == "fail"
    assert "learner.gpus_per_learner=0" in finding.fix


def test_data_that_is_not_there(settings, capsys):
    assert doctor.main([*settings, "data.name=questions", "data.path=nowhere.jsonl", "retrieval.folders.text=nowhere"]) == 1
    assert "nowhere.jsonl" in capsys.readouterr().out


def test_an_object_store_smaller_than_the_configuration_says_is_a_warning():
    assert check_object_stores(512 * 2**20, 512).status == "ok"
    short = check_object_stores(511 * 2**20, 512)
    assert short.status == "warn"
    assert "ray start --object-store-memory=536870912" in short.fix
