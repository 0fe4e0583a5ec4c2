"""The folder of a run: nothing is lost, nothing half-written is taken for whole."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from episodes import episode, question, static, step, stop

from experiments.config import LoopConfig, RunConfigError, TrainConfig
from experiments.tracking.run_folder import COMPLETE, RunFolder, run_folders
from rollout.records import Image


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    return TrainConfig(name="mine", runs_folder=str(tmp_path))


def test_an_earlier_run_of_the_same_name_steps_aside(config: TrainConfig, tmp_path: Path):
    RunFolder.start(config).add_metrics({"iteration": 1})
    assert RunFolder.start(config).metrics() == []
    (earlier,) = [path for path in tmp_path.iterdir() if path.is_dir() and path.name != "mine"]
    assert RunFolder.open(earlier).metrics() == [{"iteration": 1}]


def test_a_resumed_run_keeps_its_folder_and_forgets_what_it_will_do_again(config: TrainConfig):
    folder = RunFolder.start(config)
    for iteration in range(1, 6):
        folder.add_metrics({"iteration": iteration, "reward": float("nan")})
    resumed = RunFolder.start(replace(config, train=LoopConfig(resume="auto")))
    resumed.forget_after(3)
    assert [row["iteration"] for row in resumed.metrics()] == [1, 2, 3]
    assert resumed.metrics()[0]["reward"] is None


def test_while_it_forgets_the_metrics_as_they_were_are_whole_on_the_disk(config: TrainConfig):
    folder = RunFolder.start(config)
    for iteration in (1, 2, 3):
        folder.add_metrics({"iteration": iteration})
    with (folder.path / "metrics.jsonl").open() as as_it_was:
        folder.forget_after(1)
        assert len(as_it_was.readlines()) == 3  # written aside and renamed, not cut short in place
    assert [row["iteration"] for row in folder.metrics()] == [1]


def test_a_line_that_a_kill_cut_short_is_left_out(config: TrainConfig):
    folder = RunFolder.start(config)
    folder.add_metrics({"iteration": 1})
    with (folder.path / "metrics.jsonl").open("a") as file:
        file.write('{"iteration": 2, "rew')
    assert folder.metrics() == [{"iteration": 1}]


def add_checkpoint(folder: RunFolder, iteration: int, score: float | None = None) -> None:
    aside = folder.checkpoints / "aside"
    aside.mkdir()
    (aside / "weights").write_text("w" * 100)
    folder.finish_checkpoint(aside, iteration, {"score": score})


def names(folder: RunFolder) -> list[int]:
    return [int(path.name.removeprefix("iteration-")) for path in folder.complete_checkpoints()]


def test_only_complete_checkpoints_count(config: TrainConfig):
    folder = RunFolder.start(config)
    add_checkpoint(folder, 30)
    half = folder.checkpoint_at(40)
    half.mkdir()
    (half / "weights").write_text("w")
    (folder.checkpoints / "iteration-000050.new").mkdir()
    (folder.checkpoints / "iteration-000050.new" / COMPLETE).write_text("{}")
    assert names(folder) == [30]
    assert json.loads((folder.checkpoint_at(30) / COMPLETE).read_text()) == {"iteration": 30, "score": None}


@pytest.mark.parametrize(
    ("keep_last", "keep_best", "kept"),
    [(2, 0, [50, 60]), (1, 1, [40, 60]), (2, 2, [20, 40, 50, 60]), (1, 9, [20, 30, 40, 60]), (9, 0, [10, 20, 30, 40, 50, 60])],
)
def test_the_newest_checkpoints_and_those_of_the_best_score_are_kept(config: TrainConfig, keep_last: int, keep_best: int, kept: list[int]):
    folder = RunFolder.start(config)
    for iteration, score in [(10, None), (20, 0.5), (30, 0.4), (40, 0.5), (50, None), (60, None)]:
        add_checkpoint(folder, iteration, score)
    folder.drop_checkpoints(keep_last, keep_best)
    assert names(folder) == kept


def test_trajectories_are_read_back_step_by_step(config: TrainConfig):
    folder = RunFolder.start(config)
    pictured = question(1, "image_text", Image.of(b"\x89PNG..."))
    episodes = [episode(pictured, step("text", "Tasla"), stop(), answer="Tasla"), static(question(2), answer="Runo")]
    folder.write_trajectories("after", episodes, [{"f1_recall": (1, 1)}, {"f1_recall": (0, 1)}])
    first, second = folder.read_trajectories("after")
    assert first["image"] == b"\x89PNG..."
    assert [taken["kb"] for taken in first["steps"]] == ["text", ""]
    assert first["steps"][0]["passages"][1]["text"] == "<b>Runo</b> & sons"
    assert first["policy_version"] == 3
    assert second["counts"] == {"f1_recall": [0, 1]}
    assert second["retrievals"] == 3
    assert folder.read_trajectories("before") == []


def test_a_folder_that_no_run_has_written_is_refused(tmp_path: Path):
    with pytest.raises(RunConfigError, match=r"config\.yaml is missing"):
        RunFolder.open(tmp_path)


def test_checkpoints_of_a_future_that_was_given_up_are_put_aside(tmp_path):
    folder = RunFolder(tmp_path / "run")
    for iteration in (20, 40, 60):
        aside = folder.checkpoint_at(iteration).with_name(f"new-{iteration}")
        aside.mkdir(parents=True)
        folder.finish_checkpoint(aside, iteration, {"score": None})
    folder.abandon_after(20)
    assert [path.name for path in folder.complete_checkpoints()] == ["iteration-000020"]
    assert (folder.checkpoint_at(60).with_name("iteration-000060.abandoned") / COMPLETE).is_file()


def test_runs_of_studies_are_found_and_what_lies_within_a_run_is_none(tmp_path: Path):
    runs = ["laptop", "study/step-seed0", "study/sweep/default"]
    for name in (*runs, "laptop/old", "study/tune/trial/deep"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.yaml").write_text("name: x")
    (tmp_path / "study/start.json").write_text("{}")
    assert [path.relative_to(tmp_path).as_posix() for path in run_folders(tmp_path)] == runs
    assert run_folders(tmp_path / "nothing") == []
