"""The service as a Serve configuration on a Ray head of its own: `serve deploy`, and another policy version by the same file, in place."""

from __future__ import annotations

import subprocess
import threading
import time
from pathlib import Path

import httpx
import pytest
import yaml
from serving_process import POLICY, free_port, is_ready, without_times
from test_job_submit import RAY, head  # noqa: F401

from experiments.serve import main

QUESTION = {"question": "What is the capital of La-kor?"}


def deploy(file: Path, address: str, environment: dict[str, str]) -> None:
    command = [str(RAY.with_name("serve")), "deploy", str(file), "--address", address]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_a_configuration_deploys_and_replaces_its_policy_in_place(head, tmp_path):  # noqa: F811
    address, environment = head
    file, port = tmp_path / "serve.yaml", free_port()
    arguments = [str(POLICY), f"serve.port={port}", f"data.kb_folder={tmp_path / 'kbs'}", "data.worlds=1", "data.countries=6"]
    assert main([*arguments, "data.train_questions=8", "serve.max_replicas=2", f"serve.write_config={file}"]) == 0
    deploy(file, address, environment)
    url, end = f"http://127.0.0.1:{port}", time.monotonic() + 200
    while not is_ready(url):
        assert time.monotonic() < end
        time.sleep(0.5)
    first = httpx.post(f"{url}/v1/route", json=QUESTION, timeout=60).json()
    assert (first["policy_version"], bool(first["answer"])) == (0, True)

    config = yaml.safe_load(file.read_text())
    for deployment in config["applications"][0]["deployments"]:
        if deployment["name"] == "Endpoint":
            deployment["user_config"]["policy_version"] = 5
    file.write_text(yaml.safe_dump(config))
    answers, stop = [], threading.Event()

    def ask() -> None:
        while not stop.is_set():
            answers.append(httpx.post(f"{url}/v1/route", json=QUESTION, timeout=60))

    asking = threading.Thread(target=ask)
    asking.start()
    deploy(file, address, environment)
    end = time.monotonic() + 120
    while not answers or answers[-1].json().get("policy_version") != 5:
        assert time.monotonic() < end, [answer.text[:200] for answer in answers[-3:]]
        time.sleep(0.1)
    stop.set()
    asking.join(timeout=60)
    assert {answer.status_code for answer in answers} == {200}
    assert all(without_times(answer.json()) | {"policy_version": 0} == without_times(first) for answer in answers)


def test_the_builder_refuses_to_let_everybody_in(monkeypatch):
    from experiments.config import RunConfigError
    from experiments.serving.app import build

    monkeypatch.delenv("R1_ROUTER_API_KEY", raising=False)
    served = {"policy": "p", "policy_version": 0, "retrieval": {}, "rollout": {}, "settings": {"host": "0.0.0.0"}}
    with pytest.raises(RunConfigError, match="lets others in"):
        build(served)
