"""The service as a Serve configuration on a Ray head of its own: `serve deploy`."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import httpx
import pytest
import yaml
from serving_process import POLICY, free_port, is_ready
from test_job_submit import RAY, head  # noqa: F401

QUESTION = {"question": "What is the capital of La-kor?"}


def deploy(file: Path, address: str, environment: dict[str, str]) -> None:
    command = [str(RAY.with_name("serve")), "deploy", str(file), "--address", address]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_a_file_of_arguments_is_deployed(head, tmp_path):  # noqa: F811
    address, environment, _ = head
    file, port = tmp_path / "serve.yaml", free_port()
    arguments = [str(POLICY), "serve.host=127.0.0.1", "serve.max_replicas=2", f"data.kb_folder={tmp_path / 'kbs'}"]
    arguments += ["data.worlds=1", "data.countries=6", "data.train_questions=8"]
    application = {"name": "router", "import_path": "experiments.serving.application:build", "args": {"arguments": arguments}}
    file.write_text(yaml.safe_dump({"http_options": {"host": "127.0.0.1", "port": port}, "applications": [application]}))
    deploy(file, address, environment)
    url, end = f"http://127.0.0.1:{port}", time.monotonic() + 200
    while not is_ready(url):
        assert time.monotonic() < end
        time.sleep(0.5)
    answer = httpx.post(f"{url}/v1/route", json=QUESTION, timeout=60).json()
    assert (answer["policy_version"], bool(answer["answer"])) == (0, True)


def test_the_builder_refuses_to_let_everybody_in(monkeypatch):
    from experiments.config import RunConfigError
    from experiments.serving.application import build

    monkeypatch.delenv("R1_ROUTER_API_KEY", raising=False)
    with pytest.raises(RunConfigError, match=r"serve\.host"):
        build({"arguments": [str(POLICY)]})
