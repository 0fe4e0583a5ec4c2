"""The heartbeat file of the driver: it shows a crash to the next driver, and refuses a second one."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from read_failures import read_failures
from rich.console import Console

from experiments.cluster.supervisor import Supervisor
from experiments.config import LoopConfig, TrainConfig
from experiments.tracking.heartbeat import Heartbeat, driver_elsewhere
from experiments.tracking.run_folder import RunFolder
from retrieval_actors.folder_lock import FolderHeldError

ROOT = Path(__file__).parents[3]


def until(happened: Callable[[], object]) -> None:
    end = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.05)


@contextmanager
def driver(folder: Path) -> Iterator[subprocess.Popen]:
    """A process that drives this run, until it is killed."""
    code = (
        "import sys; from pathlib import Path; from experiments.tracking.heartbeat import Heartbeat\n"
        "from retrieval_actors.folder_lock import hold\nhold(sys.argv[1])\n"
        "with Heartbeat(Path(sys.argv[1]), lambda: {'phase': 'update', 'iteration': 7, 'policy_version': 6}):\n    input()"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(folder)], stdin=subprocess.PIPE, cwd=ROOT) as process:
        until((folder / "driver.json").exists)
        yield process
        process.send_signal(signal.SIGKILL)


def test_a_driver_that_is_killed_is_reported_by_the_next_one(tmp_path):
    with driver(tmp_path) as killed:
        pass
    console = Console(file=io.StringIO(), width=300)
    with Supervisor.of(tmp_path, console):
        pass
    assert f"failure: driver (update, process {killed.pid} on node " in console.file.getvalue()
    (failure,) = read_failures(tmp_path)
    assert (failure["phase"], failure["iteration"], failure["policy_version"]) == ("update", 7, 6)
    assert not (tmp_path / "driver.json").exists()


def test_a_second_driver_of_a_run_is_refused_while_the_first_one_lives_and_nothing_of_the_run_is_touched(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "config.yaml").write_text("of the first")
    with driver(folder) as first:
        for resume in ("auto", "none"):
            again = TrainConfig(name="mine", runs_folder=str(tmp_path), train=LoopConfig(resume=resume))
            with pytest.raises(FolderHeldError, match=rf"mine is being written by process {first.pid} on "):
                RunFolder.start(again)
        assert (folder / "config.yaml").read_text() == "of the first"
        assert {path.name for path in tmp_path.iterdir()} == {"mine", ".mine.lock"}
    RunFolder.start(again)


@pytest.mark.parametrize("written", [True, False])
def test_a_driver_on_another_node_lives_while_its_file_is_written(tmp_path, monkeypatch, written):
    monkeypatch.setattr("experiments.tracking.heartbeat.SILENT_S", 1.5)
    monkeypatch.setattr("experiments.tracking.heartbeat.BEAT_S", 0.5)
    now = {"phase": "update", "iteration": 7, "policy_version": 6}
    with monkeypatch.context() as there, contextlib.ExitStack() as still:
        there.setattr("socket.gethostname", lambda: "another")
        heartbeat = still.enter_context(Heartbeat(tmp_path, lambda: now))
        until((tmp_path / "driver.json").exists)
        if not written:
            heartbeat._file = tmp_path / "nothing" / "driver.json"
        time.sleep(0.3)  # until it knows who it is
        there.undo()
        assert ("another" in driver_elsewhere(tmp_path)) == written


def test_a_driver_that_ends_in_order_leaves_no_file(tmp_path):
    with Heartbeat(tmp_path, lambda: {"phase": "save", "iteration": 1, "policy_version": 1}) as heartbeat:
        assert heartbeat.crashed == {}
        until((tmp_path / "driver.json").exists)
        assert json.loads((tmp_path / "driver.json").read_text())["process"] == os.getpid()
    assert not (tmp_path / "driver.json").exists()
