"""A run submitted as a job to a Ray head of its own, with token authentication."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
RAY = Path(sys.executable).with_name("ray")
POLICY = REPOSITORY / "experiments/cold_start_policy"


def free_ports(count: int) -> list[int]:
    listeners = [socket.socket() for _ in range(count)]
    for listener in listeners:
        listener.bind(("127.0.0.1", 0))
    ports = [listener.getsockname()[1] for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports


def get(address: str, token: str = "") -> int:
    """HTTP status of the dashboard, 0 while nobody listens."""
    request = urllib.request.Request(f"{address}/api/version", headers={"Authorization": f"Bearer {token}"} if token else {})
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


@pytest.fixture(scope="module")
def head():
    """(dashboard address, environment of a client) of a Ray head that ends with this module. Its folder is short: sockets lie in it."""
    folder = tempfile.mkdtemp(prefix="ray-")
    gcs, dashboard, agent, agent_grpc, client = free_ports(5)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0"}
    environment["RAY_agent_register_timeout_ms"] = "120000"  # a head whose agent is late, on a busy machine, would end itself
    command = [str(RAY), "start", "--head", "--block", "--num-cpus=8", f"--temp-dir={folder}", f"--port={gcs}"]
    command += [
        "--node-ip-address=127.0.0.1",
        "--include-dashboard=true",
        f"--dashboard-port={dashboard}",
        f"--ray-client-server-port={client}",
    ]
    command += [f"--dashboard-agent-listen-port={agent}", f"--dashboard-agent-grpc-port={agent_grpc}"]
    command += ["--object-store-memory=300000000", "--disable-usage-stats", "--min-worker-port=0", "--max-worker-port=0"]
    said = Path(folder, "head.log")
    with said.open("w") as log:
        process = subprocess.Popen(command, env=environment, cwd=REPOSITORY, stdout=log, stderr=log, start_new_session=True)
    address = f"http://127.0.0.1:{dashboard}"
    try:
        end = time.monotonic() + 90
        while get(address, environment["RAY_AUTH_TOKEN"]) != 200:
            assert process.poll() is None, f"the head ended: {said.read_text()[-2000:]}"
            assert time.monotonic() < end, f"the head did not start: {said.read_text()[-2000:]}"
            time.sleep(0.5)
        yield address, environment
    finally:
        print(said.read_text()[-3000:])  # shown when a test fails
        process.terminate()  # `--block` ends everything that it started
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)


def submit(head, *entrypoint: str) -> subprocess.CompletedProcess:
    address, environment = head
    command = [str(RAY), "job", "submit", "--address", address, "--", *entrypoint]
    end = time.monotonic() + 60
    while True:
        done = subprocess.run(command, env=environment, cwd=REPOSITORY, capture_output=True, text=True, timeout=240, check=False)
        if "No available agent" not in done.stderr or time.monotonic() > end:  # the dashboard is up a little before its agent
            return done


def test_without_the_token_nobody_gets_in(head):
    address, _ = head
    assert get(address) == 401
    assert get(address, "0" * 64) == 403


@pytest.mark.timeout(300)
def test_a_submitted_run_ends_with_a_whole_run_folder(head, tmp_path):
    settings = [f"runs_folder={tmp_path}", f"data.kb_folder={tmp_path / 'kbs'}", f"tracking.uri=sqlite:///{tmp_path / 'mlflow.db'}"]
    done = submit(head, sys.executable, "-m", "experiments.train", "smoke.yaml", "name=job", *settings)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    summary = json.loads((tmp_path / "job" / "summary.json").read_text())
    assert summary["iterations"] == 2
    assert (tmp_path / "job" / "policy" / "model.safetensors").is_file()


def test_a_job_that_fails_says_why(head):
    failed = submit(head, sys.executable, "-m", "experiments.train", "smoke.yaml", "train.iteratons=2")
    assert failed.returncode != 0
    assert "unknown key train.iteratons; did you mean train.iterations?" in failed.stdout + failed.stderr
