"""What a run shows, and what it tells MLflow."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from experiments.config import LoopConfig, TrackingConfig, TrainConfig
from experiments.progress import Progress, sparkline
from experiments.tracking import Tracker

ROW = {"iteration": 3, "reward": 0.5, "routing": 0.25, "tokens_per_second": 1234.0}


def test_without_a_terminal_every_iteration_is_one_line():
    console = Console(file=io.StringIO(), force_terminal=False, width=200)
    with Progress(console, "mine", iterations=6, minutes=0) as progress:
        progress.phase("evaluate before")
        progress.detail("questions", 1, 2)
        progress.phase("train")
        progress.iteration(ROW, trained_seconds=30)
    lines = console.file.getvalue().splitlines()
    assert len(lines) == 2
    assert lines[1].split() == "iteration 3 reward 0.500 routing 0.250 1,234 tokens/s 0:30 left".split()


def test_on_a_terminal_a_panel_shows_phase_figures_and_time_left():
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    progress = Progress(console, "mine", iterations=100, minutes=1)
    progress.phase("train")
    for i in range(1, 30):
        progress.iteration(ROW | {"iteration": i, "reward": i / 30}, trained_seconds=i)
    with console.capture() as captured:
        console.print(progress._panel())
    shown = captured.get()
    assert "mine" in shown
    assert "train" in shown
    assert "0:31 left" in shown
    assert "1,234" in shown
    assert "█" in shown


@pytest.mark.parametrize(("values", "expected"), [([], ""), ([1.0, 1.0], "▁▁"), ([0.0, 1.0], "▁█"), ([0.0, 0.5, 1.0], "▁▅█")])
def test_a_sparkline_goes_from_the_smallest_to_the_largest(values, expected):
    assert sparkline(values) == expected


def test_a_long_history_fits_its_place():
    assert len(sparkline([float(i) for i in range(1000)], width=40)) <= 40


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    return TrainConfig(name="mine", tracking=TrackingConfig(uri=f"sqlite:///{tmp_path}/mlflow.db"))


def test_mlflow_gets_the_same_figures_and_a_resumed_run_goes_on_in_its_own(config: TrainConfig, tmp_path: Path):
    from mlflow import MlflowClient

    said: list[str] = []
    tracker = Tracker(config, tmp_path, said.append)
    tracker.log(ROW | {"missing": None, "broken": float("nan")}, 3)
    tracker.finish("KILLED")
    resumed = Tracker(replace(config, train=LoopConfig(resume="auto")), tmp_path, said.append)
    resumed.log({"reward": 0.75}, 4)
    resumed.finish()
    assert (said, tracker.failures, resumed.failures) == ([], 0, 0)
    assert resumed.run_id == tracker.run_id
    client = MlflowClient(tracking_uri=config.tracking.uri)
    run = client.get_run(tracker.run_id)
    assert [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, "reward")] == [(3, 0.5), (4, 0.75)]
    assert set(run.data.metrics) == {"iteration", "reward", "routing", "tokens_per_second"}
    assert run.data.params["rollout.group_size"] == str(config.rollout.group_size)
    assert run.info.status == "FINISHED"


def test_a_store_that_cannot_be_reached_is_said_once_and_ends_nothing(tmp_path: Path):
    said: list[str] = []
    (tmp_path / "file").write_text("")
    broken = TrainConfig(tracking=TrackingConfig(uri=f"sqlite:///{tmp_path}/file/mlflow.db"))
    tracker = Tracker(broken, tmp_path, said.append)
    tracker.log(ROW, 1)
    tracker.finish()
    assert tracker.failures == 1
    assert len(said) == 1
    assert "the run goes on" in said[0]


def test_without_mlflow_nothing_is_started(tmp_path: Path):
    tracker = Tracker(TrainConfig(tracking=TrackingConfig(mlflow=False)), tmp_path, pytest.fail)
    tracker.log(ROW, 1)
    tracker.finish()
    assert tracker.run_id == ""
