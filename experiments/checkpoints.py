"""Checkpoints of a run: all that going on needs, complete or not there. They are written behind the training."""

from __future__ import annotations

import dataclasses
import json
import shutil
import threading
import time
from pathlib import Path
from typing import Any

from experiments.config import RunConfigError
from experiments.parts import Run
from experiments.passage_pictures import passage_pictures
from experiments.run_folder import COMPLETE, RunFolder
from experiments.tally import Tally
from learner.advantages import turn_advantages
from learner.checkpoint_files import CorruptCheckpointError, facts_of, refuse_damaged
from learner.deadline import DeadlineError
from learner.group import MANIFEST

LEARNER = "learner_group"
"""Folder of the learner within a checkpoint."""
POLL_S = 0.2
"""Between two looks at what the learners write."""


class Checkpoints:
    """Used in a `with` block, which ends when the last checkpoint is written (or at once, when the user insists)."""

    def __init__(self, run: Run):
        self._run = run
        self._writing: threading.Thread | None = None
        self._error: BaseException | None = None
        self._iteration = 0

    def __enter__(self) -> Checkpoints:
        for leftover in self._run.folder.checkpoints.glob("*.new*"):  # of a run that was killed while it wrote
            shutil.rmtree(leftover, ignore_errors=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if kind is None:
            self.wait()
        elif self._writing is not None and issubclass(kind, Exception):  # which is what the user has to hear of
            self._join()

    def save(self) -> None:
        """Copy weights, optimizer, random states, position in the questions, and what the run has added up so far; write them in the background.

        Waits until the last checkpoint is written, and tells if it was not. What went wrong for want of room is counted and told, and training
        goes on; anything else is raised.
        """
        self.wait()
        run, learner = self._run, self._run.parts.algorithm.learner_group
        self._iteration = run.iteration
        aside = run.folder.checkpoints / f"iteration-{run.iteration:06d}.new"
        shutil.rmtree(aside, ignore_errors=True)
        facts = {
            "policy_version": run.parts.algorithm.policy_version,
            "score": run.tally.validated["score"] if run.tally.validated.get("iteration") == run.iteration else None,
            "tally": dataclasses.asdict(run.tally),
            "knowledge_bases": run.parts.fingerprints(),
        }
        try:
            with learner.only_snapshots():
                run.parts.algorithm.save_to_path(aside)
            self._write_trajectories()
            learner.write(aside.absolute() / LEARNER)
        except OSError as error:
            self._failed(error)
            return
        self._writing = threading.Thread(target=self._finish, args=(aside, run.iteration, facts), daemon=True)
        self._writing.start()

    def _write_trajectories(self) -> None:
        """Those that this iteration learned from, with what every sibling earned and how much was learned from it."""
        run, algorithm = self._run, self._run.parts.algorithm
        run.folder.write_trajectories(
            f"iteration-{run.iteration:06d}",
            algorithm.trajectories,
            turns=algorithm.turns,
            advantages=turn_advantages(algorithm.turns, run.config.learner).advantages if algorithm.turns else (),
            pictures=passage_pictures(algorithm.trajectories, run.parts.training_folders),
        )

    def wait(self) -> None:
        """Until what was begun is written. Raises what went wrong, unless it was the disk."""
        if self._writing is None:
            return
        self._join()
        self._writing, error, self._error = None, self._error, None
        if isinstance(error, OSError):
            self._failed(error)
        elif error is not None:
            raise error

    def forget(self) -> None:
        """What was being written is given up: the learners that wrote it are lost."""
        if self._writing is not None:
            self._join()
        self._writing, self._error = None, None
        shutil.rmtree(self._run.folder.checkpoints / f"iteration-{self._iteration:06d}.new", ignore_errors=True)

    def _join(self) -> None:
        """Raises `DeadlineError` when the disk does not even answer."""
        assert self._writing is not None
        patience = 2 * self._run.parts.algorithm.learner_group.config.deadline_s  # the learners' own deadline, and the checksums
        self._writing.join(timeout=patience)
        if self._writing.is_alive():
            raise DeadlineError(
                f"waited {patience:g} s for the checkpoint of iteration {self._iteration} to be written into {self._run.folder.checkpoints}: "
                "is its disk still there?"
            )

    def _finish(self, aside: Path, iteration: int, facts: dict[str, Any]) -> None:
        try:
            learner = self._run.parts.algorithm.learner_group
            end = time.monotonic() + learner.config.deadline_s
            while not learner.written():
                if time.monotonic() > end:
                    raise DeadlineError(
                        f"waited {learner.config.deadline_s:g} s for the learners to write {aside}: is its disk still there?"
                    )
                time.sleep(POLL_S)
            names = [file.relative_to(aside).as_posix() for file in aside.rglob("*") if file.is_file()]
            facts["files"] = facts_of(aside, [n for n in names if not n.startswith(f"{LEARNER}/") or n == f"{LEARNER}/{MANIFEST}"])
            self._run.folder.finish_checkpoint(aside, iteration, facts)
            self._run.folder.drop_checkpoints(self._run.config.train.keep_last, self._run.config.train.keep_best)
        except BaseException as error:
            self._error = error

    def _failed(self, error: OSError) -> None:
        run = self._run
        shutil.rmtree(run.folder.checkpoints / f"iteration-{self._iteration:06d}.new", ignore_errors=True)
        note_failed_save(run, f"the checkpoint of iteration {self._iteration}", error)


def note_failed_save(run: Run, what: str, error: OSError) -> None:
    """Tell and count it; the run goes on with what it has."""
    run.tally.failed_saves += 1
    good = run.folder.complete_checkpoints()
    run.progress.say(
        f"warning: {what} was not written: {error}; training goes on, the last good checkpoint is {good[-1].name if good else 'none'}",
        style="red",
    )


def resume(run: Run) -> None:
    """Go on from the checkpoint that `train.resume` says, if there is one.

    Raises RunConfigError for a folder that is no complete checkpoint, that is corrupt, or one of other knowledge bases.
    """
    checkpoint = _chosen(run)
    if checkpoint is None:
        run.folder.forget_after(0)
        run.folder.abandon_after(0)
        return
    set_up = run.tally.seconds.get("set_up", 0.0)
    restore(run, checkpoint)
    run.tally.seconds["set_up"] = run.tally.seconds.get("set_up", 0.0) + set_up
    run.progress.say(f"resumed after iteration {run.iteration} from {checkpoint}")


def restore(run: Run, checkpoint: Path | None) -> None:
    """Go on from this checkpoint; None: from the beginning, with an algorithm that is as it was then. Raises as `resume`."""
    if checkpoint is None:
        run.folder.forget_after(0)
        run.folder.abandon_after(0)  # those that are corrupt: the newest are kept, and they would be
        run.tally, run.iteration = Tally(seconds=run.tally.seconds), 0
        return
    facts = _facts(checkpoint)
    if facts["knowledge_bases"] != run.parts.fingerprints():
        raise RunConfigError(f"{checkpoint / COMPLETE}: made with other knowledge bases; set data and retrieval back, or start a new run")
    run.parts.algorithm.restore_from_path(checkpoint)
    if lost := run.parts.algorithm.learner_group.not_restored:
        run.progress.say(f"warning: {lost}", style="yellow")
    run.folder.forget_after(facts["iteration"])
    run.folder.abandon_after(facts["iteration"])
    run.tally, run.iteration = Tally(**facts["tally"]), facts["iteration"]


def _chosen(run: Run) -> Path | None:
    setting = run.config.train.resume
    if setting == "none":
        return None
    if setting == "auto":
        return newest_good(run.folder, lambda warning: run.progress.say(warning, style="yellow"))
    if not (Path(setting) / COMPLETE).is_file():
        raise RunConfigError(f"train.resume={setting}: {COMPLETE} is missing there, so it is no complete checkpoint")
    try:
        refuse_corrupt(Path(setting))
    except CorruptCheckpointError as error:
        raise RunConfigError(f"train.resume={setting}: {error}") from None
    return Path(setting)


def newest_good(folder: RunFolder, warn: Any) -> Path | None:
    """The newest checkpoint whose files are all as they were written; `warn` is called with a sentence for each that is passed over."""
    for checkpoint in reversed(folder.complete_checkpoints()):
        try:
            refuse_corrupt(checkpoint)
        except CorruptCheckpointError as error:
            warn(f"warning: {checkpoint.name} is passed over: {error}")
        else:
            return checkpoint
    return None


def refuse_corrupt(checkpoint: Path) -> None:
    """Reads all of it. Raises `CorruptCheckpointError`, naming the file that is not as it was written."""
    try:
        facts = _facts(checkpoint)
        refuse_damaged(checkpoint, facts["files"], read=True)
        refuse_damaged(checkpoint / LEARNER, json.loads((checkpoint / LEARNER / MANIFEST).read_text())["files"], read=True)
    except (json.JSONDecodeError, KeyError) as error:
        raise CorruptCheckpointError(f"{checkpoint / COMPLETE} is corrupt: {error!r}; choose another checkpoint") from None


def _facts(checkpoint: Path) -> dict[str, Any]:
    return json.loads((checkpoint / COMPLETE).read_text(encoding="utf-8"))
