"""What a report of a failure says, and where its facts come from."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from experiments.cluster import note_on_folders
from experiments.config import LoopConfig, RunConfigError, TrackingConfig, TrainConfig
from experiments.data_config import DataConfig
from experiments.failures.driver_file import DriverFile, live_driver
from experiments.failures.exit_status import ExitStatus, exit_status, opened
from experiments.failures.failure import read_failures
from experiments.failures.judgement import out_of_memory
from experiments.failures.node_watch import LOG_LINES, LastSeen, NodeWatch, last_lines
from experiments.failures.ray_facts import Death
from experiments.failures.roles import phase_of
from experiments.failures.supervisor import Supervisor
from experiments.run_folder import RunFolder
from learner.deadline import DeadlineError


@pytest.mark.parametrize(
    ("ends", "expected"),
    [("os.kill(os.getpid(), 9)", "killed by SIGKILL"), ("os.abort()", "killed by SIGABRT"), ("os._exit(7)", "exit code 7")],
)
def test_how_a_process_of_somebody_else_ended_is_known_where_the_system_tells(ends, expected):
    parent = subprocess.Popen(
        [sys.executable, "-c", f"import os\npid = os.fork()\nif pid == 0:\n    input()\n    {ends}\nprint(pid, flush=True)\nos.wait()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    handle = opened(int(parent.stdout.readline()))
    assert handle is not None
    assert exit_status(handle) is None
    parent.communicate("\n", timeout=30)
    found = exit_status(handle)
    os.close(handle)
    if found is None:
        pytest.skip("this Linux does not tell (before 6.15)")
    assert str(found) == expected


def test_the_end_of_a_log_is_bounded(tmp_path):
    (tmp_path / "worker-ab-01000000-77.err").write_text(":job_id:01000000\n" + "".join(f"line {i} {'x' * 400}\n" for i in range(5000)))
    lines = last_lines(tmp_path, 77)
    assert len(lines) == LOG_LINES
    assert lines[-1].startswith("line 4999 ")
    assert max(map(len, lines)) <= 240
    assert last_lines(tmp_path, 78) == ()


SEEN = LastSeen(exit=ExitStatus(signal="SIGKILL"), memory_mb=900.0, peak_mb=1000.0, node_memory="10.0 of 20.0 GiB")


@pytest.mark.parametrize(
    ("seen", "kind", "expected"),
    [
        (SEEN, "NODE_OUT_OF_MEMORY", "yes, Ray's memory monitor"),
        (
            LastSeen(SEEN.exit, 900.0, 1000.0, SEEN.node_memory, 0, ("torch.OutOfMemoryError: CUDA out of memory.",)),
            "USER_ERROR",
            "yes, its log says",
        ),
        (replace(SEEN, oom_kills=2), "SYSTEM_ERROR", "yes, the kernel killed 2 processes of its node for want of memory at that moment"),
        (replace(SEEN, node_memory="19.9 of 20.0 GiB"), "SYSTEM_ERROR", "possibly: 19.9 of 20.0 GiB were in use"),
        (SEEN, "SYSTEM_ERROR", "no sign of it"),
    ],
)
def test_whether_it_was_memory(seen, kind, expected):
    detail = "End of file. Some common causes include: (1) the process was killed by the OOM killer due to high memory usage"
    assert out_of_memory(seen, Death(1, "n", "10.0.0.1", kind, detail, 0.0)).startswith(expected)


@pytest.mark.parametrize("killed_by_the_kernel", [False, True])
def test_only_what_the_kernel_killed_about_the_end_of_a_process_speaks_for_memory(ray_cluster, monkeypatch, killed_by_the_kernel):
    monkeypatch.setattr("experiments.failures.node_watch.SAMPLE_S", 0.1)
    kills = [3]  # earlier in the run, of somebody else
    watch = NodeWatch(lambda: kills[0])
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    watch.watch([process.pid])
    until(lambda: watch.last_seen(process.pid).memory_mb)
    kills[0] += 1  # while it lives on
    time.sleep(0.4)
    kills[0] += killed_by_the_kernel
    process.kill()
    process.wait(timeout=30)
    time.sleep(0.4)
    kills[0] += 5  # before anybody asks
    seen = watch.last_seen(process.pid)
    watch.close()
    assert seen.oom_kills == killed_by_the_kernel
    assert out_of_memory(seen, None).startswith("yes, the kernel") == killed_by_the_kernel


def until(happened: Callable[[], object]) -> None:
    end = time.monotonic() + 30
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_knowledge_bases_search_while_others_roll_out():
    assert phase_of("shard 0 of knowledge base text", "rollout") == "search"
    assert phase_of("rollout worker 1", "rollout") == "roll out"
    assert phase_of("learner rank 0", "learn") == "update"
    assert phase_of("driver", "checkpoint") == "save"


def test_an_error_of_the_program_is_a_panel_on_the_screen_and_its_traceback_is_in_the_file(tmp_path):
    console = Console(file=io.StringIO(), width=120)
    with Supervisor.of(tmp_path, console) as supervisor:
        supervisor.begin(4)
        try:
            with supervisor.clock.doing("validate"):
                raise DeadlineError("waited 600 s for an evaluation worker to finish 64 questions")
        except DeadlineError as error:
            supervisor.end(error)
    said = console.file.getvalue()
    for part in ("waited 600 s for an evaluation worker", "evaluate, iteration 4", "raise learner.deadline_s", "train.resume=auto"):
        assert part in said, part
    assert "Traceback" not in said
    (failure,) = read_failures(tmp_path)
    assert failure["fatal"]
    assert "Traceback (most recent call last)" in failure["traceback"]


def test_a_driver_that_is_killed_is_told_of_by_the_next_one(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from experiments.failures.driver_file import DriverFile\n"
        "with DriverFile(Path(sys.argv[1]), lambda: {'phase': 'update', 'iteration': 7, 'policy_version': 6}):\n    time.sleep(60)"
    )
    driver = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=Path(__file__).parents[2])
    end = time.monotonic() + 60
    while not (tmp_path / "driver.json").exists():
        assert time.monotonic() < end
        time.sleep(0.05)
    driver.send_signal(signal.SIGKILL)
    driver.wait(timeout=30)
    console = Console(file=io.StringIO(), width=300)
    with Supervisor.of(tmp_path, console):
        pass
    said = console.file.getvalue()
    assert f"failure: driver (update, process {driver.pid} on node " in said
    assert "lost without a word" in said
    (failure,) = read_failures(tmp_path)
    assert (failure["phase"], failure["iteration"], failure["policy_version"]) == ("update", 7, 6)
    assert not (tmp_path / "driver.json").exists()


def test_a_second_driver_of_a_run_is_refused_while_the_first_one_lives_and_nothing_of_the_run_is_touched(tmp_path):
    code = (
        "import sys; from pathlib import Path; from experiments.failures.driver_file import DriverFile\n"
        "with DriverFile(Path(sys.argv[1]), lambda: {'phase': 'save', 'iteration': 7, 'policy_version': 6}):\n    input()"
    )
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "config.yaml").write_text("of the first")
    with subprocess.Popen([sys.executable, "-c", code, str(folder)], stdin=subprocess.PIPE, cwd=Path(__file__).parents[2]) as driver:
        until((folder / "driver.json").exists)
        for resume in ("auto", "none"):
            again = TrainConfig(name="mine", runs_folder=str(tmp_path), train=LoopConfig(resume=resume))
            with pytest.raises(
                RunConfigError, match=rf"mine is still driven by process {driver.pid} on node \S+ \(phase save, iteration 7\)"
            ):
                RunFolder.start(again)
        assert (folder / "config.yaml").read_text() == "of the first"
        assert [path.name for path in tmp_path.iterdir()] == ["mine"]
        driver.kill()
    RunFolder.start(again)


@pytest.mark.parametrize("written", [True, False])
def test_of_a_driver_on_another_node_its_file_speaks(tmp_path, monkeypatch, written):
    monkeypatch.setattr("experiments.failures.driver_file.SILENT_S", 1.5)
    monkeypatch.setattr("experiments.failures.driver_file.BEAT_S", 0.5)
    now = {"phase": "update", "iteration": 7, "policy_version": 6}
    with monkeypatch.context() as there, contextlib.ExitStack() as still:
        there.setattr("socket.gethostname", lambda: "another")
        file = still.enter_context(DriverFile(tmp_path, lambda: now))
        until((tmp_path / "driver.json").exists)
        if not written:
            file._file = tmp_path / "nothing" / "driver.json"
        time.sleep(0.3)  # until it knows who it is
        there.undo()
        assert ("another" in live_driver(tmp_path)) == written


def test_a_driver_that_ends_in_order_leaves_no_file(tmp_path):
    with DriverFile(tmp_path, lambda: {"phase": "save", "iteration": 1, "policy_version": 1}) as file:
        assert file.before == {}
        end = time.monotonic() + 30
        while not (tmp_path / "driver.json").exists():
            assert time.monotonic() < end
            time.sleep(0.02)
        assert json.loads((tmp_path / "driver.json").read_text())["process"] == os.getpid()
    assert not (tmp_path / "driver.json").exists()


def test_a_job_that_writes_into_its_own_copy_of_the_repository_is_told(tmp_path, monkeypatch):
    assert note_on_folders(TrainConfig()) == ""
    job = tmp_path / "_ray_pkg_0a1b2c"
    job.mkdir()
    monkeypatch.chdir(job)
    said = note_on_folders(replace(TrainConfig(), tracking=TrackingConfig(uri="http://tracking:5000")))
    assert said.startswith("note: runs_folder=runs, data.kb_folder=kbs: relative to this job's copy of the repository")
    kept = replace(
        TrainConfig(), runs_folder="/disk/runs", data=DataConfig(kb_folder="/disk/kbs"), tracking=TrackingConfig(uri="sqlite:////disk/m.db")
    )
    assert note_on_folders(kept) == ""
