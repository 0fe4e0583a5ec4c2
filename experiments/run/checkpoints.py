"""Checkpoints of a run: everything that is needed to continue, written in the background under another name, then renamed."""

import dataclasses
import json
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from experiments.config import RunConfigError
from experiments.run.run_state import Run, Totals
from experiments.tracking.run_folder import COMPLETE, RunFolder
from learner.deadline import DeadlineError
from learner.learner_group import MANIFEST
from learner.objective.advantages import turn_advantages
from learner.ranks.checkpoint_files import CorruptCheckpointError, facts_of, refuse_damaged

LEARNER = "learner_group"  # folder of the learner within a checkpoint
POLL_S = 0.2  # between two checks whether the learners have finished writing


class Checkpoints:
    """The end of its `with` block waits until the last checkpoint is written, except after KeyboardInterrupt."""

    def __init__(self, run: Run):
        self._run, self._iteration = run, 0
        self._writing: threading.Thread | None = None
        self._error: BaseException | None = None

    def __enter__(self) -> Self:
        for leftover in self._run.folder.checkpoints.glob("*.new*"):  # of a run that was killed while it wrote
            shutil.rmtree(leftover, ignore_errors=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if kind is None:
            self.wait()
        elif issubclass(kind, Exception):  # an error of the checkpoint must not hide that of the block
            self._join()

    def save(self) -> None:
        """Copy weights, optimizer, random states, position in the questions and totals, and write them in the background, after the last
        checkpoint. An OSError (a full disk) is counted and reported, and training continues; any other error is raised."""
        self.wait()
        run, algorithm = self._run, self._run.actors.algorithm
        self._iteration = run.iteration
        aside = self._aside()
        shutil.rmtree(aside, ignore_errors=True)
        score = run.totals.validated["score"] if run.totals.validated.get("iteration") == run.iteration else None
        facts = {"policy_version": algorithm.policy_version, "score": score}
        facts |= {"totals": dataclasses.asdict(run.totals), "knowledge_bases": run.actors.fingerprints()}
        try:
            with algorithm.learner_group.only_snapshots():
                algorithm.save_to_path(aside)
            run.folder.add_policy_to(aside)
            write_trajectories(run)
            algorithm.learner_group.write(aside.absolute() / LEARNER)
        except OSError as error:
            self._failed(error)
            return
        self._writing = threading.Thread(target=self._finish, args=(aside, run.iteration, facts), daemon=True)
        self._writing.start()

    def wait(self) -> None:
        """Until the checkpoint in progress is written. Raises its error, unless it was an OSError."""
        self._join()
        self._writing, error, self._error = None, self._error, None
        if isinstance(error, OSError):
            self._failed(error)
        elif error is not None:
            raise error

    def forget(self) -> None:
        """Give up the checkpoint in progress: the learners that wrote it are lost."""
        self._join()
        self._writing, self._error = None, None
        shutil.rmtree(self._aside(), ignore_errors=True)

    def _aside(self) -> Path:
        return self._run.folder.checkpoints / f"iteration-{self._iteration:06d}.new"

    def _join(self) -> None:
        """Raises `DeadlineError` when the disk does not answer."""
        if self._writing is not None:
            self._writing.join(timeout=(patience := self._run.config.learner.deadline_s))
            if self._writing.is_alive():
                raise DeadlineError(f"waited {patience:g} s for {self._aside()} to be written: is its disk still there?")

    def _finish(self, aside: Path, iteration: int, facts: dict[str, Any]) -> None:
        try:
            while not self._run.actors.algorithm.learner_group.written():
                time.sleep(POLL_S)
            names = [file.relative_to(aside).as_posix() for file in aside.rglob("*") if file.is_file()]
            facts["files"] = facts_of(aside, [n for n in names if not n.startswith(f"{LEARNER}/") or n == f"{LEARNER}/{MANIFEST}"])
            self._run.folder.finish_checkpoint(aside, iteration, facts)
            self._run.folder.drop_checkpoints(self._run.config.train.keep_last, self._run.config.train.keep_best)
        except BaseException as error:
            self._error = error

    def _failed(self, error: OSError) -> None:
        shutil.rmtree(self._aside(), ignore_errors=True)
        note_failed_save(self._run, f"the checkpoint of iteration {self._iteration}", error)


def write_trajectories(run: Run) -> None:
    """The trajectories of this iteration with the reward and advantage of every sibling. They are fetched from the object store here."""
    name, algorithm, folders = f"iteration-{run.iteration:06d}", run.actors.algorithm, run.actors.training_folders
    advantages = turn_advantages(algorithm.turns, run.config.learner).advantages if algorithm.turns else ()
    calibration = run.config.reward.need_calibration
    run.folder.write_trajectories(name, algorithm.trajectories, (), algorithm.turns, advantages, folders, calibration)


def note_failed_save(run: Run, what: str, error: OSError) -> None:
    """Report and count a save that failed; training continues."""
    run.totals.failed_saves += 1
    last = good[-1].name if (good := run.folder.complete_checkpoints()) else "none"
    run.progress.say(f"warning: {what} was not written: {error}; training goes on, the last good checkpoint is {last}", style="red")


def resume(run: Run) -> None:
    """Continue from the checkpoint that `train.resume` names; with `auto` from the newest good one, if any. Raises RunConfigError for one that is
    incomplete, corrupt, or made with other knowledge bases, NotFiniteError for one that holds NaN."""
    setting, good = run.config.train.resume, None
    if setting == "auto":
        good = newest_good(run.folder, run.warn)
    elif setting != "none":
        good = Path(setting)
        if not (good / COMPLETE).is_file():
            raise RunConfigError(f"train.resume={setting}: {COMPLETE} is missing there, so it is no complete checkpoint")
        try:
            refuse_corrupt(good)
        except CorruptCheckpointError as error:
            raise RunConfigError(f"train.resume={setting}: {error}") from None
    set_up = run.totals.seconds.get("set_up", 0.0)
    restore(run, good)
    if good:
        run.totals.seconds["set_up"] = run.totals.seconds.get("set_up", 0.0) + set_up
        run.progress.say(f"resumed after iteration {run.iteration} from {good}")


def restore(run: Run, checkpoint: Path | None) -> None:
    """Set the run back to this checkpoint; None: to the beginning, where the algorithm has to be new. Raises as `resume`."""
    totals, iteration = Totals(seconds=run.totals.seconds), 0
    if checkpoint:
        facts = _facts(checkpoint)
        if facts["knowledge_bases"] != run.actors.fingerprints():
            raise RunConfigError(
                f"{checkpoint / COMPLETE}: made with other knowledge bases; set data and retrieval back, or start a new run"
            )
        run.actors.algorithm.restore_from_path(checkpoint)
        if lost := run.actors.algorithm.learner_group.not_restored:
            run.warn(f"warning: {lost}")
        totals, iteration = Totals(**facts["totals"]), facts["iteration"]
    run.folder.forget_after(iteration)
    run.folder.abandon_after(iteration)  # corrupt ones as well: `keep_last` would keep them
    run.folder.restore_policy(checkpoint)
    run.totals, run.iteration = totals, iteration


def newest_good(folder: RunFolder, warn: Callable[[str], None]) -> Path | None:
    """The newest checkpoint with correct checksums; `warn` gets a line for each newer, corrupt one."""
    for checkpoint in reversed(folder.complete_checkpoints()):
        try:
            refuse_corrupt(checkpoint)
            return checkpoint
        except CorruptCheckpointError as error:
            warn(f"warning: {checkpoint.name} is passed over: {error}")
    return None


def refuse_corrupt(checkpoint: Path) -> None:
    """Reads all files. Raises `CorruptCheckpointError` with the name of the first one that is damaged."""
    try:
        refuse_damaged(checkpoint, _facts(checkpoint)["files"], read=True)
        refuse_damaged(checkpoint / LEARNER, json.loads((checkpoint / LEARNER / MANIFEST).read_text())["files"], read=True)
    except (json.JSONDecodeError, KeyError) as error:
        raise CorruptCheckpointError(f"{checkpoint / COMPLETE} is corrupt: {error!r}; choose another checkpoint") from None


def _facts(checkpoint: Path) -> dict[str, Any]:
    return json.loads((checkpoint / COMPLETE).read_text(encoding="utf-8"))
