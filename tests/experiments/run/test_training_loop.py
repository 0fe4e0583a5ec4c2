"""Where signs of collapse are reported, and how they end a run."""

from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console

from experiments.command_line.progress import Progress
from experiments.config import load_config
from experiments.report.report_page import write_report
from experiments.run.run_state import Run, Totals
from experiments.run.stop_signal import Stop
from experiments.run.training_loop import how_it_stopped, report_signs
from experiments.tracking.run_folder import RunFolder
from learner.collapse import Watch


def watched(tmp_path: Path, *settings: str) -> tuple[Run, Watch, Stop, io.StringIO]:
    config = load_config(["smoke.yaml", f"runs_folder={tmp_path}", "learner.collapse.window=2", *settings])
    said = io.StringIO()
    progress = Progress(Console(file=said, width=300), "smoke", 10, 0)
    run = Run(config, None, RunFolder.start(config), None, progress, None, Totals(), None)  # type: ignore[arg-type]
    return run, Watch(config.learner.collapse), Stop(), said


def test_a_sign_is_on_the_screen_in_the_metrics_in_the_summary_and_in_the_report(tmp_path):
    run, watch, stop, said = watched(tmp_path)
    for run.iteration in (1, 2, 3):
        row = {"iteration": run.iteration, "format": 0.1}
        report_signs(run, watch, row, stop)
    assert row["warnings"] == 1
    assert said.getvalue().count("warning, iteration 2: format is 0.1 (threshold 0.5)") == 1
    assert "try reward.format_weight" in said.getvalue()
    assert [(found["iteration"], found["name"]) for found in run.totals.warnings] == [(2, "format")]
    assert not stop.requested
    run.folder.write_summary({"name": "smoke", "warnings": run.totals.warnings})
    write_report(run.folder)
    assert "iteration 2: format 0.1" in run.folder.report.read_text()


def test_where_it_is_asked_for_a_sign_ends_the_training_and_says_where_the_best_policy_is(tmp_path):
    run, watch, stop, _ = watched(tmp_path, "learner.collapse.stop=true")
    for run.iteration in (1, 2):
        report_signs(run, watch, {"format": 0.1}, stop)
    assert stop.requested
    assert "no policy was validated yet" in how_it_stopped(run, stop)
    run.totals.best = {"iteration": 1}
    said = how_it_stopped(run, stop)
    assert "stopped after iteration 2: format is 0.1, threshold 0.5" in said
    assert f"of iteration 1, is in {run.folder.policy}" in said
    assert how_it_stopped(run, Stop()) == "stopped after iteration 2; resume with train.resume=auto"
