"""What a report of a failure says, and where its facts come from."""

from __future__ import annotations

import io
import json
import os
import signal
import time

import pytest
import ray
from read_failures import read_failures
from rich.console import Console

from experiments.cluster.supervisor import LOG_LINES, Supervisor, fix_for, read_end
from experiments.tracking.run_folder import RunFolder
from learner.deadline import DeadlineError
from rollout.nan_check import NotFiniteError


def test_how_and_when_a_process_ended_is_read_from_the_logs_of_ray(tmp_path):
    (tmp_path / "events").mkdir()
    said = "A worker died. Worker PID: {} Worker exit type: {} Worker exit detail: Worker exits with {}. Some causes include: (1) the OOM killer"
    events = [(77, "SYSTEM_ERROR", "an exit code 1", 1000), (7, "INTENDED_USER_EXIT", "an exit code 0", 2000)]
    lines = [json.dumps({"message": said.format(*event[:3]), "timestamp": event[3]}) for event in events]
    (tmp_path / "events/event_RAYLET.log").write_text("\n".join(lines) + "\n")
    (tmp_path / "worker-ab-01000000-77.out").write_text("what it said\n")
    when, exit, log = read_end(77, tmp_path)
    assert (when, exit, log) == (1000.0, "SYSTEM_ERROR: Worker exits with an exit code 1.", ("what it said",))
    assert "memory" not in fix_for(exit, *log)
    assert read_end(78, tmp_path)[1:] == ("", ())


def test_the_end_of_a_log_is_bounded(tmp_path):
    (tmp_path / "worker-ab-01000000-77.err").write_text(":job_id:01000000\n" + "".join(f"line {i} {'x' * 400}\n" for i in range(5000)))
    lines = read_end(77, tmp_path)[2]
    assert len(lines) == LOG_LINES
    assert lines[-1].startswith("line 4999 ")
    assert max(map(len, lines)) <= 240


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("NODE_OUT_OF_MEMORY: killed by the memory monitor.", True),
        ("torch.OutOfMemoryError: CUDA out of memory.", True),
        ("SYSTEM_ERROR: Worker unexpectedly exits with a connection error code 2. End of file.", False),
    ],
)
def test_whether_it_was_memory(text, expected):
    assert ("learner.tokens_per_micro_batch" in fix_for("", text)) == expected


def test_an_actor_that_is_killed_and_restarted_is_reported_once_with_process_node_exit_and_log(ray_cluster, tmp_path):
    @ray.remote(max_restarts=1, max_task_retries=-1, num_cpus=0)
    class Actor:
        def work(self) -> int:
            print("the last line of its log", flush=True)
            return os.getpid()

    actor, console = Actor.remote(), Console(file=io.StringIO(), width=300)
    pid = ray.get(actor.work.remote(), timeout=120)
    supervisor = Supervisor(tmp_path, console)
    supervisor.watch(None, lambda: {"rollout worker 1": actor})
    with supervisor.timeline.doing("rollout"):
        time.sleep(1.1)  # Ray's events have whole seconds
        os.kill(pid, signal.SIGKILL)
        until(lambda: not os.path.exists(f"/proc/{pid}/statm"))
    until(supervisor.check_actors)
    (failure,) = read_failures(tmp_path)
    assert (failure["role"], failure["process"], failure["phase"], failure["fatal"]) == ("rollout worker 1", pid, "rollout", False)
    assert failure["exit"].startswith("SYSTEM_ERROR: Worker unexpectedly exits")
    assert failure["log"] == ["the last line of its log"]
    assert failure["node"]
    assert f"failure: rollout worker 1 (rollout, process {pid} on node " in console.file.getvalue()
    assert ray.get(actor.work.remote(), timeout=120) != pid
    assert supervisor.check_actors() == []
    ray.kill(actor)


def until(happened) -> None:
    end = time.monotonic() + 30
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_an_error_of_the_program_is_on_the_screen_with_what_to_try_and_its_traceback_is_in_the_file(tmp_path):
    console = Console(file=io.StringIO(), width=120)
    with Supervisor.of(tmp_path, console) as supervisor:
        supervisor.iteration = 4
        try:
            with supervisor.timeline.doing("validate"):
                raise DeadlineError("waited 600 s for an evaluation worker to finish 64 questions")
        except DeadlineError as error:
            supervisor.end(error)
    said = console.file.getvalue()
    for part in ("waited 600 s for an evaluation worker", "validate", "learner.deadline_s", "train.resume=auto"):
        assert part in said, part
    assert "Traceback" not in said
    (failure,) = read_failures(tmp_path)
    assert (failure["fatal"], failure["phase"], failure["iteration"]) == (True, "validate", 4)
    assert "Traceback (most recent call last)" in failure["traceback"]


@pytest.mark.parametrize("checkpoints", [(3, 20), ()], ids=str)
def test_a_run_that_ends_with_nan_names_the_checkpoint_that_it_can_go_on_from(tmp_path, checkpoints):
    folder = RunFolder(tmp_path)
    for iteration in checkpoints:
        (aside := folder.checkpoints / "aside").mkdir(parents=True)
        folder.finish_checkpoint(aside, iteration, {})
    (folder.checkpoints / "iteration-000021.new").mkdir(parents=True)
    with Supervisor.of(tmp_path, Console(file=io.StringIO())) as supervisor:
        failure = supervisor.end(NotFiniteError("the update from policy version 20: grad_norm is nan"))
    assert (failure.role, failure.reason) == ("learner", "the update from policy version 20: grad_norm is nan")
    assert ("iteration-000020" in failure.then) == bool(checkpoints)
