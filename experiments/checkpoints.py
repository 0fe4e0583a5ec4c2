"""Checkpoints of a run: all that going on needs, complete or not there."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

from experiments.config import RunConfigError
from experiments.parts import Run
from experiments.run_folder import COMPLETE, RunFolder
from experiments.tally import Tally


def save_checkpoint(run: Run) -> None:
    """Weights, optimizer, random states, position in the questions, and what the run has added up so far."""
    aside = run.folder.checkpoints / f"iteration-{run.iteration:06d}.new"
    shutil.rmtree(aside, ignore_errors=True)
    run.parts.algorithm.save_to_path(aside)
    facts = {
        "policy_version": run.parts.algorithm.policy_version,
        "tally": dataclasses.asdict(run.tally),
        "knowledge_bases": run.parts.fingerprints(),
    }
    run.folder.finish_checkpoint(aside, run.iteration, facts)
    run.folder.write_trajectories(f"iteration-{run.iteration:06d}", run.parts.algorithm.trajectories)


def resume(run: Run) -> None:
    """Go on from the checkpoint that `train.resume` says, if there is one.

    Raises RunConfigError for a folder that is no complete checkpoint, or one of other knowledge bases.
    """
    checkpoint = _chosen(run.config.train.resume, run.folder)
    if checkpoint is None:
        run.folder.forget_after(0)
        return
    facts = json.loads((checkpoint / COMPLETE).read_text(encoding="utf-8"))
    if facts["knowledge_bases"] != run.parts.fingerprints():
        raise RunConfigError(f"{checkpoint / COMPLETE}: made with other knowledge bases; set data and retrieval back, or start a new run")
    run.parts.algorithm.restore_from_path(checkpoint)
    run.folder.forget_after(facts["iteration"])
    earlier = Tally(**facts["tally"])
    earlier.seconds["set_up"] = earlier.seconds.get("set_up", 0.0) + run.tally.seconds.get("set_up", 0.0)
    run.tally, run.iteration = earlier, facts["iteration"]
    run.progress.say(f"resumed after iteration {run.iteration} from {checkpoint}")


def _chosen(setting: str, folder: RunFolder) -> Path | None:
    if setting == "none":
        return None
    if setting == "auto":
        complete = folder.complete_checkpoints()
        return complete[-1] if complete else None
    if not (Path(setting) / COMPLETE).is_file():
        raise RunConfigError(f"train.resume={setting}: {COMPLETE} is missing there, so it is no complete checkpoint")
    return Path(setting)
