"""The disk fills up while a run saves: it is told and counted, training goes on, and so do the checkpoints when there is room again."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import pytest
from tiny_turns import weights_of

from experiments.config import LoopConfig, TrainConfig
from experiments.run.checkpoints import LEARNER, Checkpoints, newest_good
from experiments.run.run_state import Totals
from experiments.tracking.run_folder import COMPLETE, RunFolder


@pytest.fixture
def run(algorithm, mounted):
    """As much of a run as its checkpoints see: the real algorithm, a folder on a disk of its own."""
    config = TrainConfig(name="mine", runs_folder=str(mounted("24m")), train=LoopConfig(keep_last=2, keep_best=1))
    actors = SimpleNamespace(algorithm=algorithm, fingerprints=dict, training_folders={})
    said: list[str] = []
    progress = SimpleNamespace(say=lambda text, style="": said.append(text), said=said)
    return SimpleNamespace(
        config=config, folder=RunFolder.start(config), actors=actors, progress=progress, warn=said.append, totals=Totals(), iteration=0
    )


def train_and_save(run, checkpoints, score=None):
    run.actors.algorithm.train()
    run.iteration += 1
    run.totals.validated = {} if score is None else {"iteration": run.iteration, "score": score}
    checkpoints.save()


def names(run) -> list[str]:
    return [path.name for path in run.folder.complete_checkpoints()]


def test_training_goes_on_without_room_and_with_room_again_so_do_the_checkpoints(run):
    with Checkpoints(run) as checkpoints:
        train_and_save(run, checkpoints)
        checkpoints.wait()
        assert names(run) == ["iteration-000001"]
        filler = run.folder.path / "filler"
        filler.write_bytes(b"x" * (shutil.disk_usage(run.folder.path).free - 200_000))
        train_and_save(run, checkpoints)
        checkpoints.wait()
        (warning,) = run.progress.said
        assert warning.startswith("warning: the checkpoint of iteration 2 was not written: ")
        assert f"iteration-000002.new/{LEARNER} needs" in warning
        assert " are free" in warning
        assert warning.endswith("training goes on, the last good checkpoint is iteration-000001")
        assert run.totals.failed_saves == 1
        assert not list(run.folder.checkpoints.glob("*.new*"))
        filler.unlink()
        train_and_save(run, checkpoints)
    assert names(run) == ["iteration-000001", "iteration-000003"]
    assert newest_good(run.folder, run.progress.said.append) == run.folder.checkpoint_at(3)
    assert json.loads((run.folder.checkpoint_at(3) / COMPLETE).read_text())["totals"]["failed_saves"] == 1


def test_a_run_keeps_its_newest_and_its_best_checkpoints_and_goes_on_from_each(run):
    with Checkpoints(run) as checkpoints:
        for score in (0.1, 0.9, 0.2, None, None):
            train_and_save(run, checkpoints, score)
            if run.iteration == 2:
                checksum = weights_of(run.actors.algorithm.learner_group).checksum
    assert names(run) == ["iteration-000002", "iteration-000004", "iteration-000005"]
    run.actors.algorithm.restore_from_path(run.folder.checkpoint_at(2))
    assert weights_of(run.actors.algorithm.learner_group).checksum == checksum


def test_what_a_killed_run_left_half_written_is_removed(run):
    half = run.folder.checkpoints / "iteration-000007.new"
    (half / LEARNER).mkdir(parents=True)
    with Checkpoints(run):
        assert not half.exists()
    assert names(run) == []
