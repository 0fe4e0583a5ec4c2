"""Which checkpoint a run goes on from, when some are damaged."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from experiments.config import RunConfigError, TrainConfig
from experiments.run.checkpoints import LEARNER, newest_good, restore
from experiments.run.run_state import Run, Totals
from experiments.tracking.run_folder import COMPLETE, RunFolder
from learner.ranks.checkpoint_files import facts_of


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """A run with three checkpoints."""
    folder = RunFolder.start(TrainConfig(name="mine", runs_folder=str(tmp_path)))
    for iteration in (1, 2, 3):
        aside = folder.checkpoints / "aside"
        learner = aside / LEARNER
        (learner / "engine").mkdir(parents=True)
        (aside / "algorithm_state.pkl").write_bytes(b"state" * 50)
        (learner / "engine/weights.pt").write_bytes(bytes(range(256)) * 20)
        (learner / "learner.json").write_text(json.dumps({"files": facts_of(learner, ["engine/weights.pt"])}))
        facts = {"files": facts_of(aside, ["algorithm_state.pkl", f"{LEARNER}/learner.json"])}
        folder.finish_checkpoint(aside, iteration, facts)
    return folder


def flip_a_bit(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


DAMAGES = {
    "a flipped bit in the weights": (lambda c: flip_a_bit(c / LEARNER / "engine/weights.pt"), "engine/weights.pt is corrupt: its checksum"),
    "weights that were cut short": (
        lambda c: (c / LEARNER / "engine/weights.pt").write_bytes(b"w"),
        "weights.pt is corrupt: 1 bytes, 5120 were",
    ),
    "weights that are gone": (lambda c: (c / LEARNER / "engine/weights.pt").unlink(), "engine/weights.pt is missing"),
    "a flipped bit in the learner's manifest": (lambda c: flip_a_bit(c / LEARNER / "learner.json"), "learner.json is corrupt"),
    "a flipped bit in the state of the run": (lambda c: flip_a_bit(c / "algorithm_state.pkl"), "algorithm_state.pkl is corrupt"),
    "a completion mark that was cut short": (lambda c: (c / COMPLETE).write_text('{"iterat'), f"{COMPLETE} is corrupt"),
}


@pytest.mark.parametrize(("damage", "said"), DAMAGES.values(), ids=DAMAGES.keys())
def test_a_run_goes_on_from_the_newest_good_checkpoint_and_names_the_file_that_is_bad(folder: RunFolder, damage, said: str):
    warnings: list[str] = []
    assert newest_good(folder, warnings.append) == folder.checkpoint_at(3)
    assert not warnings
    damage(folder.checkpoint_at(3))
    assert newest_good(folder, warnings.append) == folder.checkpoint_at(2)
    (warning,) = warnings
    assert warning.startswith("warning: iteration-000003 is passed over: ")
    assert said in warning


def test_a_run_that_begins_again_puts_bad_checkpoints_out_of_the_way_of_its_own(folder: RunFolder):
    for iteration in (1, 2, 3):
        flip_a_bit(folder.checkpoint_at(iteration) / "algorithm_state.pkl")
    run = Run(TrainConfig(), None, folder, None, None, None, Totals(), None, iteration=4)  # type: ignore[arg-type]
    restore(run, newest_good(folder, lambda warning: None))
    aside = folder.checkpoints / "aside"
    aside.mkdir()
    folder.finish_checkpoint(aside, 1, {})
    folder.drop_checkpoints(keep_last=1, keep_best=0)
    assert folder.complete_checkpoints() == [folder.checkpoint_at(1)]
    assert run.iteration == 0


def test_without_any_good_checkpoint_every_one_is_named(folder: RunFolder):
    for iteration in (1, 2, 3):
        flip_a_bit(folder.checkpoint_at(iteration) / "algorithm_state.pkl")
    warnings: list[str] = []
    assert newest_good(folder, warnings.append) is None
    assert len(warnings) == 3


def test_a_checkpoint_made_with_another_knowledge_base_is_refused_by_name(tmp_path):
    (tmp_path / COMPLETE).write_text(json.dumps({"knowledge_bases": {"text": "then"}}))
    run = SimpleNamespace(actors=SimpleNamespace(fingerprints=lambda: {"text": "now"}), totals=Totals())
    with pytest.raises(RunConfigError, match="made with other knowledge bases"):
        restore(run, tmp_path)
