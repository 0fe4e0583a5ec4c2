"""Commands in surroundings that are not as they should be: real processes, one line, within seconds after they have been imported."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from serving_process import POLICY, ROOT, free_port

pytestmark = pytest.mark.slow
IMPORT_S, LINE_S = 30, 15
"""What a busy machine takes to import a command, and what may pass from then to its line."""
COMMANDS = {
    "train": ["smoke.yaml", "runs_folder={folder}/runs"],
    "evaluate": [str(POLICY), "smoke.yaml", "evaluation.folder={folder}/evaluations"],
    "serve": [str(POLICY)],
    "study": ["runs_folder={folder}/runs"],
    "kb build": ["{folder}/facts.jsonl", "{folder}/kb"],
    "kb status": [],
    "bench": ["learner"],
}


def refused(folder: Path, name: str, **surroundings: str) -> str:
    """The one line with which this command ends."""
    (folder / "facts.jsonl").write_text('{"title": "a", "text": "b"}\n')
    done = subprocess.run(
        [sys.executable, "-m", "experiments.cli", *name.split(), *(part.format(folder=folder) for part in COMMANDS[name])],
        cwd=ROOT,
        env=os.environ | surroundings,
        capture_output=True,
        text=True,
        timeout=IMPORT_S + LINE_S,
    )
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("error: ")]
    return line


@pytest.fixture(scope="module")
def head() -> Iterator[str]:
    """A real Ray that wants a token."""
    port = free_port()
    with tempfile.TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True) as folder:
        command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", f"--port={port}", "--num-cpus=1"]
        environment = os.environ | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "of-the-head", "RAY_TMPDIR": folder}
        with subprocess.Popen([*command, "--include-dashboard=false"], env=environment, stdout=subprocess.PIPE, text=True) as process:
            for line in process.stdout:
                if "--block" in line:
                    break
            yield f"127.0.0.1:{port}"
            started = psutil.Process(process.pid).children(recursive=True)
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=30)
            for child in psutil.wait_procs(started, timeout=10)[1]:
                child.kill()


@pytest.mark.parametrize("name", COMMANDS)
def test_a_cluster_that_is_not_there_is_one_line(tmp_path, name):
    assert "nothing answers at RAY_ADDRESS=127.0.0.1:" in refused(tmp_path, name, RAY_ADDRESS=f"127.0.0.1:{free_port()}")


@pytest.mark.parametrize("name", COMMANDS)
def test_a_cluster_that_wants_a_token_says_which_variables_to_set(tmp_path, head, name):
    said = refused(tmp_path, name, RAY_ADDRESS=head)
    assert "the cluster wants another token; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN to the token of the head" in said
    said = refused(tmp_path, name, RAY_ADDRESS=head, RAY_AUTH_MODE="token", HOME=str(tmp_path))
    assert "RAY_AUTH_MODE=token is set, and no token is found" in said


def test_with_its_token_the_cluster_is_joined(head):
    done = subprocess.run(
        [sys.executable, "-m", "experiments.cli", "kb", "status"],
        cwd=ROOT,
        env=os.environ | {"RAY_ADDRESS": head, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "of-the-head"},
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no knowledge base runs here" in done.stdout


def test_two_runs_of_one_name_are_refused_however_early_the_second_one_comes(tmp_path):
    """The first has not begun to write how far it is: it starts Ray."""
    command = [sys.executable, "-m", "experiments.train", "smoke.yaml", f"runs_folder={tmp_path}/runs", f"data.kb_folder={tmp_path}/kbs"]
    with subprocess.Popen([*command, "tracking.mlflow=false"], cwd=ROOT, stdout=subprocess.DEVNULL) as first:
        end = time.monotonic() + 60
        while not (tmp_path / "runs/smoke/config.yaml").exists():
            assert time.monotonic() < end
            assert first.poll() is None
            time.sleep(0.05)
        again = "from experiments.tracking.run_folder import RunFolder; from experiments.config import load_config; import sys; "
        again += "RunFolder.start(load_config(sys.argv[1:]))"
        second = subprocess.run([sys.executable, "-c", again, *command[3:]], cwd=ROOT, capture_output=True, text=True, timeout=60)
        first.send_signal(signal.SIGTERM)
        assert first.wait(timeout=60) == 130
    assert f"process {first.pid} on" in second.stderr
    assert [path.name for path in (tmp_path / "runs").iterdir() if path.is_dir()] == ["smoke"]
