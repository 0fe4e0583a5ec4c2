"""One training of a study: to its number of turns, on the ground that all of them share, from where it was stopped."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

from ray.exceptions import RayError
from rich.console import Console

from experiments.checkpoints import resume
from experiments.config import RunConfigError
from experiments.datasets import Dataset
from experiments.early_report import report_so_far
from experiments.failures.roles import roles_of
from experiments.failures.supervisor import Supervisor
from experiments.fingerprints import write_fingerprints
from experiments.measuring import note_stop
from experiments.parts import Ground, Run, build_parts
from experiments.progress import Progress
from experiments.run_folder import RunFolder
from experiments.stop import Stop
from experiments.studies.plan import Training, differing
from experiments.tally import Tally
from experiments.tracking import Tracker
from experiments.train import train
from learner.deadline import DeadlineError
from learner.lost_learner import LearnerLostError

ATTEMPTS = 3
"""Times that a part of a study is begun before it is given up: a process of a machine that is used by others may be killed."""
Done = TypeVar("Done")


def folder_of(training: Training) -> RunFolder:
    return RunFolder(Path(training.config.runs_folder) / training.config.name)


def is_finished(training: Training) -> bool:
    folder, settings = folder_of(training), training.config.train
    found = folder.summary()
    enough = found.get("turns", 0) >= settings.turns or found.get("iterations", 0) >= settings.iterations
    return bool(found) and enough and folder.policy.is_dir()


def check_earlier(training: Training) -> None:
    """Raises RunConfigError when the folder holds a run with other settings: a study must not be a mixture."""
    folder = folder_of(training)
    if (folder.path / "config.yaml").exists() and (changed := differing(folder.config(), training.config)):
        raise RunConfigError(
            f"{folder.path} was trained with another {', '.join(changed)}; set it back, or give the study another name (name=...)"
        )


def finish(training: Training, dataset: Dataset, policy: str, ground: Ground, console: Console, stop: Stop) -> bool:
    """Train until the turns are sampled, or `stop` is asked for. Returns whether it is finished; what is finished already is left alone."""
    check_earlier(training)
    if is_finished(training):
        return True
    config = training.config
    folder, tally = RunFolder.start(config), Tally()
    with (
        Supervisor.of(folder.path, console) as supervisor,
        Progress(console, config.name, config.train.iterations, config.train.minutes) as progress,
    ):
        tracker, parts, outcome = Tracker(config, folder.path, progress.say), None, "FAILED"
        try:
            with tally.timed("set_up"), supervisor.clock.doing("set_up"):
                parts = build_parts(config, dataset, policy, progress, lent=ground)
            write_fingerprints(folder.path, config.data.name, dataset, parts.all_fingerprints())
            supervisor.oversee(parts.algorithm, partial(roles_of, parts))
            run = Run(config, dataset, folder, parts, progress, tracker, tally, supervisor)
            resume(run)
            train(run, stop)
            note_stop(run)
            outcome = "KILLED" if stop.asked else "FINISHED"
        finally:
            report_so_far(folder, None, progress.say)
            tracker.finish(outcome)
            if parts:
                parts.close()
    return is_finished(training)


def persistently(what: str, work: Callable[[], Done], say: Callable[[str], None]) -> Done | None:
    """`work`, begun again when Ray lost a process or was too slow; None when it failed too often, which is told."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return work()
        except (RayError, DeadlineError, LearnerLostError) as error:
            say(f"{what} failed, attempt {attempt} of {ATTEMPTS}: {' '.join(str(error).split())[:300]}")
    return None
