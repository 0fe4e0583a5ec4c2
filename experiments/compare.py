"""`python -m experiments.compare [RUN ...] [key=value ...]`: what runs were told differently, what came out, and how surely it differs.

RUN is a run folder, a name in runs/, the id of an MLflow run, or a filter in MLflow's language; the first run is what the others are compared
with. Without any, all of runs/. Writes comparison.html, curves.png and comparison.json, and logs them to MLflow where one of the runs is there.

    python -m experiments.compare laptop seed1 seed2
    python -m experiments.compare "metrics.`heldout/f1_recall` > 0.6" uri=http://mlflow:5000
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from experiments.command_settings import read_settings
from experiments.comparison.chosen import chosen_runs, is_filter
from experiments.comparison.found import Comparison, as_json, compare_runs
from experiments.comparison.page import comparison_page
from experiments.comparison.record import record
from experiments.comparison.runs import ComparedRun
from experiments.comparison.screen import print_comparison
from experiments.config import RunConfigError, TrackingConfig
from experiments.evaluation_folder import without_nan
from experiments.tracking.plots import plot_curves


@dataclass
class CompareSettings:
    runs_folder: str = "runs"
    """Where names are looked for."""
    folder: str = "comparisons"
    """Where the page, the picture and the figures are written, in a folder named by the runs."""
    mlflow: bool = True
    """Log the comparison back, where one of the runs is in MLflow."""
    uri: str = ""
    """MLflow's store; empty: that of the first run that is in one, else sqlite:///mlflow.db."""
    experiment: str = ""
    """Likewise."""


def write_comparison(found: Comparison, parent: Path) -> list[Path]:
    """comparison.html, comparison.json and, where there is a curve to draw, curves.png."""
    names = "-".join(run.name.replace("/", ".") for run in found.runs[:4])
    folder = parent / (names if len(found.runs) <= 4 else f"{names}-and-{len(found.runs) - 4}-more")
    folder.mkdir(parents=True, exist_ok=True)
    page, figures, picture = (folder / name for name in ("comparison.html", "comparison.json", "curves.png"))
    page.write_text(comparison_page(found), encoding="utf-8")
    figures.write_text(json.dumps(without_nan(as_json(found)), indent=1, ensure_ascii=False, default=str) + "\n", encoding="utf-8")
    rows = {run.name: run.metrics for run in found.runs if run.metrics}
    if rows:
        plot_curves(rows, picture)
    return [page, figures, *([picture] if rows else [])]


def _store(settings: CompareSettings, runs: Sequence[ComparedRun]) -> TrackingConfig:
    known = next((run.identity for run in runs if run.run_id), {})
    return TrackingConfig(
        uri=settings.uri or known.get("uri") or TrackingConfig.uri,
        experiment=settings.experiment or known.get("experiment") or TrackingConfig.experiment,
    )


def main(arguments: list[str]) -> int:
    console = Console(width=None if sys.stdout.isatty() else 160)
    said = [argument for argument in arguments if "=" not in argument or is_filter(argument)]
    try:
        settings = read_settings(CompareSettings, [argument for argument in arguments if argument not in said])
        with tempfile.TemporaryDirectory() as downloads:
            runs = chosen_runs(said, Path(settings.runs_folder), _store(settings, []), Path(downloads))
            found = compare_runs(runs)
            print_comparison(console, found)
            files = write_comparison(found, Path(settings.folder))
    except RunConfigError as error:
        console.print(f"error: {error}", style="red", soft_wrap=True, markup=False, highlight=False)
        return 2
    console.print(f"page: {files[0]}", soft_wrap=True, highlight=False)
    if settings.mlflow and len(runs) > 1 and any(run.run_id for run in runs):
        store = _store(settings, runs)
        try:
            console.print(f"in MLflow: run {record(found, files, store)}", soft_wrap=True, highlight=False)
        except Exception as error:  # whatever MLflow raises: the comparison is made, and on disk
            said_so = " ".join(str(error).split())[:200]
            console.print(
                f"MLflow at {store.uri}: {type(error).__name__}: {said_so}; the page is there all the same", style="yellow", markup=False
            )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
