"""A run submitted as a job to a Ray head of its own, with token authentication."""

from __future__ import annotations

import json
import os
import re
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

import psutil
import pytest

REPOSITORY = Path(__file__).parents[2]
RAY = Path(sys.executable).with_name("ray")
RAYS_OWN = re.compile(r"\x1b\[\d+m|\d{4}-\d\d-\d\d [\d:,]+\t")
"""How lines begin that are Ray's: in colour (whom it speaks for, what it leaves out), or with date and time and a tab (`ray job` itself)."""
CHEAP = """train.num_rollout_workers=1 train.questions_per_iteration=2 train.evaluate_every=0 train.checkpoint_every=0 evaluation.questions=2
evaluation.validation_questions=2 evaluation.baselines=[] data.countries=4 data.train_questions=16 tracking.mlflow=false""".split()
"""Less than smoke.yaml of everything that other tests run as well."""


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
    """(dashboard address, environment of a client, process) of a Ray head that ends with this module. Its folder is short: sockets lie in it."""
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
        yield address, environment, psutil.Process(process.pid)
    finally:
        print(said.read_text()[-3000:])  # shown when a test fails
        process.terminate()  # `--block` ends everything that it started
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)


def submit(head, *entrypoint: str, options: tuple[str, ...] = (), patience: float = 500) -> subprocess.CompletedProcess:
    address, environment, _ = head
    command = [str(RAY), "job", "submit", "--address", address, *options, "--", *entrypoint]
    end = time.monotonic() + 60
    while True:
        done = subprocess.run(command, env=environment, cwd=REPOSITORY, capture_output=True, text=True, timeout=patience, check=False)
        if "No available agent" not in done.stderr or time.monotonic() > end:  # the dashboard is up a little before its agent
            return done


def jobs(head) -> list[dict]:
    """What the dashboard knows of all jobs, in the order of their starts."""
    address, environment, _ = head
    request = urllib.request.Request(f"{address}/api/jobs/", headers={"Authorization": f"Bearer {environment['RAY_AUTH_TOKEN']}"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return sorted(json.load(answer), key=lambda job: job["start_time"])


def job(head, name: str) -> dict:
    return next(found for found in jobs(head) if found["submission_id"] == name)


def wait_until(holds, patience: float, what: str) -> None:
    end = time.monotonic() + patience
    while not holds():
        assert time.monotonic() < end, what
        time.sleep(0.3)


def test_without_the_token_nobody_gets_in(head):
    address, _, _ = head
    assert get(address) == 401
    assert get(address, "0" * 64) == 403


@pytest.mark.slow
@pytest.mark.timeout(700)
def test_a_submitted_run_ends_with_a_whole_run_folder(head, tmp_path):
    command = [sys.executable, "-m", "experiments.train", "smoke.yaml", "name=job", f"runs_folder={tmp_path}", *CHEAP]
    done = submit(head, *command, options=("--working-dir=.",))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    summary = json.loads((tmp_path / "job" / "summary.json").read_text())
    assert summary["iterations"] == 2
    assert (tmp_path / "job" / "policy" / "model.safetensors").is_file()
    said = done.stdout[done.stdout.index("train:") :].splitlines()
    ours = [line for line in said if not RAYS_OWN.match(line)]
    assert len(ours) > 10
    assert not [line for line in ours if any(ord(character) < 32 and character != "\t" for character in line)], "control characters"
    assert [line.split()[1] for line in done.stdout.splitlines() if line.startswith("iteration ")] == ["1", "2"]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_job_that_fails_says_why(head):
    failed = submit(head, sys.executable, "-m", "experiments.train", "smoke.yaml", "train.iteratons=2")
    assert failed.returncode != 0
    assert jobs(head)[-1]["driver_exit_code"] == 2
    assert "unknown key train.iteratons; did you mean train.iterations?" in failed.stdout + failed.stderr


def figures(run: Path) -> list[tuple]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(row["iteration"], row["policy_version"], row["reward"], row["loss"], row["grad_norm"]) for row in rows]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_stopped_job_leaves_a_checkpoint_and_no_process_and_a_second_one_goes_on_as_if_nothing_had_happened(head, tmp_path):
    address, environment, _ = head
    common = [f"data.kb_folder={tmp_path / 'kbs'}", f"runs_folder={tmp_path}", "tracking.mlflow=false", "train.evaluate_every=0"]
    command = [sys.executable, "-m", "experiments.train", "smoke.yaml", *common]
    time_to_save = ("--no-wait", "--submission-id=first", '--runtime-env-json={"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "200"}}')
    begun = submit(head, *command, "name=stopped", "train.iterations=1000", "train.checkpoint_every=0", options=time_to_save)
    assert begun.returncode == 0, begun.stdout + begun.stderr
    run = tmp_path / "stopped"
    wait_until(lambda: (run / "metrics.jsonl").exists() and figures(run), 300, "no iteration ended")
    actors = [process for process in head[2].children(recursive=True) if is_actor_of_ours(process)]
    assert len(actors) > 5
    subprocess.run([str(RAY), "job", "stop", "--address", address, "first"], env=environment, check=True, timeout=300, capture_output=True)
    wait_until(lambda: job(head, "first")["status"] == "STOPPED", 240, "the job does not stop")
    before = figures(run)
    assert (run / f"checkpoints/iteration-{len(before):06d}/complete.json").is_file()
    assert not (run / "driver.json").exists(), "the driver was killed before it had ended"
    wait_until(lambda: not any(process.is_running() for process in actors), 60, "processes of the job live on")

    longer = f"train.iterations={len(before) + 1}"
    resumed = submit(head, *command, "name=stopped", longer, "train.resume=auto", patience=500)
    assert resumed.returncode == 0, resumed.stdout[-3000:]
    assert f"resumed after iteration {len(before)} from" in resumed.stdout
    undisturbed = submit(head, *command, "name=undisturbed", longer, patience=500)
    assert undisturbed.returncode == 0, undisturbed.stdout[-3000:]
    assert figures(run) == figures(tmp_path / "undisturbed")


def is_actor_of_ours(process: psutil.Process) -> bool:
    try:
        line = " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return False
    return line.startswith(("ray::RolloutWorker", "ray::LearnerRank", "ray::ShardActor", "ray::EvaluationWorker", "ray::RewardActor"))
