"""What happens when a learner is lost while the group is being started anew, and when a run ends with a worker that hangs."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
from ray.exceptions import OwnerDiedError
from read_failures import read_failures
from rich.console import Console

from experiments.cluster.supervisor import Supervisor
from experiments.command_line.progress import Progress
from experiments.config import load_config
from experiments.run.run_state import Run, Totals
from experiments.run.training_loop import Recovery
from experiments.tracking.run_folder import RunFolder
from learner.deadline import LearnerLostError, refuse_lost_sender


class LostAgain:
    """An algorithm whose learner is lost as often as this while it is started anew."""

    def __init__(self, times: int):
        self.times, self.restarts = times, 0

    def restart_learner(self) -> None:
        self.restarts += 1
        if self.restarts <= self.times:
            raise LearnerLostError([1], f"all learners to build, time {self.restarts}", "The actor died unexpectedly")


def lost_run(tmp_path: Path, times: int) -> Run:
    """As much of a run as its recovery sees; nothing was saved yet."""
    config = load_config(["smoke.yaml", f"runs_folder={tmp_path}", "train.max_restarts=2"])
    console = Console(file=io.StringIO(), width=300)
    folder = RunFolder.start(config)
    tracker = SimpleNamespace()
    supervisor = Supervisor(folder.path, console)
    actors = SimpleNamespace(algorithm=LostAgain(times))
    progress = Progress(console, "smoke", 1, 0)
    return Run(config, None, folder, actors, progress, tracker, Totals(failures=1), supervisor, iteration=5)  # type: ignore[arg-type]


NOTHING_IS_WRITTEN = SimpleNamespace(forget=lambda: None)
FIRST = LearnerLostError([0], "the update from policy version 4", "The actor died unexpectedly")


def test_a_learner_that_is_lost_while_it_is_started_anew_is_started_once_more_and_both_losses_are_told(tmp_path, ray_cluster):
    run = lost_run(tmp_path, times=1)
    recovery = Recovery(run)
    recovery.restart(FIRST, NOTHING_IS_WRITTEN)  # type: ignore[arg-type]
    assert run.actors.algorithm.restarts == recovery.restarts == 2
    assert (run.iteration, run.totals.restarts, run.totals.failures) == (0, 2, 3)
    told = [(failure["role"], failure["fatal"], failure["then"].rpartition("(")[2]) for failure in read_failures(run.folder.path)]
    assert told == [("learner rank 0", False, "1 of 2)"), ("learner rank 1", False, "2 of 2)")]


def test_the_last_of_too_many_losses_ends_the_run(tmp_path):
    run = lost_run(tmp_path, times=9)
    with pytest.raises(LearnerLostError, match="rank 1 lost during all learners to build, time 2"):
        Recovery(run).restart(FIRST, NOTHING_IS_WRITTEN)  # type: ignore[arg-type]
    assert run.actors.algorithm.restarts == 2


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_rollout_worker_that_hangs_does_not_keep_a_run_from_ending(ray_cluster):
    from tiny_training import offline_config
    from tiny_turns import save_tiny_policy

    algorithm = offline_config(save_tiny_policy()).build_algo()
    (stopped, *_) = [ray.get(handle.apply.remote(lambda _: os.getpid()), timeout=60) for handle in algorithm.workers.handles.values()]
    os.kill(stopped, signal.SIGSTOP)
    try:
        ending = threading.Thread(target=algorithm.stop, daemon=True)
        ending.start()
        ending.join(timeout=60)
        assert not ending.is_alive()
    finally:
        with contextlib.suppress(ProcessLookupError):  # Ray has done so
            os.kill(stopped, signal.SIGKILL)


def test_weights_that_are_gone_with_the_learner_that_had_put_them_into_the_store_are_a_loss_of_the_learner():
    with pytest.raises(LearnerLostError, match="learner rank 0 lost during the broadcast of policy version 7"):
        refuse_lost_sender(OwnerDiedError("00" * 28, b"", ""), 7)
