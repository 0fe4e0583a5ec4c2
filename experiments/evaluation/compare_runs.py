"""Comparison of runs beyond MLflow's own: paired differences on the same questions, and caveats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from experiments.config import RunConfigError
from experiments.evaluation.metrics import Counts
from experiments.evaluation.result_tables import difference_table, failure_warnings, results_table, shown
from experiments.evaluation.significance import Interval, tested_differences
from experiments.tracking.fingerprints import read_fingerprints
from experiments.tracking.mlflow_connection import identity
from experiments.tracking.run_folder import RunFolder, flat_yaml, run_folders

SHOWN = ("f1_recall", "exact_match", "routing_accuracy", "stop_accuracy", "retrievals_per_question")  # They have a column and are tested
FEWEST = 10  # Fewer shared questions give no paired differences
UNIMPORTANT = ("name", "runs_folder", "train.resume", "learner.seed")  # No effect on results; `learner.seed` follows `train.seed`
STATES = {"FINISHED": "finished", "KILLED": "stopped", "FAILED": "failed"}


@dataclass(frozen=True)
class ComparedRun:
    name: str
    settings: Mapping[str, Any]  # Dotted key -> value, of the code version that wrote them
    summary: Mapping[str, Any]
    fingerprints: Mapping[str, Any]
    iterations: int
    turns: int
    state: str  # `finished`, `stopped`, `failed`, or `unfinished`: killed, or still running
    questions: Mapping[str, dict[str, Any]]  # Id -> text, answers and counts; empty where nothing was stored after training

    def counts(self, ids: Sequence[str]) -> list[Counts]:
        return [self.questions[id]["counts"] for id in ids]

    @property
    def after(self) -> dict[str, Any]:
        """Metric -> result of the best policy on the held-out questions; empty where it was not measured."""
        return self.summary.get("after", {}).get("overall", {})


@dataclass(frozen=True)
class Comparison:
    runs: Sequence[ComparedRun]  # The others are compared with the first
    caveats: list[str]
    differences: dict[str, dict[str, Interval]]  # Run -> metric -> run minus first; `SHOWN` are tested, corrected for the number of runs
    shared: dict[str, int]  # Run -> questions that it and the first run were asked
    settings: dict[str, list[Any]]  # Dotted key, or what it was trained on -> value in each run, where they differ; `–`: not known


def find_runs(arguments: Sequence[str], runs_folder: Path) -> list[ComparedRun]:
    """Runs by folder, name in `runs_folder`, or MLflow id; without arguments all of `runs_folder`. Raises RunConfigError for one not found."""
    local = run_folders(runs_folder)
    if not arguments and not local:
        raise RunConfigError(f"no runs in {runs_folder}/; make train makes one, or name the folders of runs")
    found = [_find(argument, local) for argument in arguments] or local
    paths = list({path.resolve(): path for path in found}.values())
    names = [path.name for path in paths]
    return [_read(path, path.name if names.count(path.name) == 1 else str(path)) for path in paths]


def _find(argument: str, local: Sequence[Path]) -> Path:
    if (Path(argument) / "config.yaml").is_file():
        return Path(argument)
    named = [path for path in local if argument in (path.name, identity(path).get("run_id"))]
    nearest = [path for path in named if len(path.parts) == min(len(other.parts) for other in named)]
    if len(nearest) > 1:
        raise RunConfigError(f"{argument}: {len(nearest)} runs have that name; name one by its folder: {', '.join(map(str, nearest))}")
    if not nearest:
        names = ", ".join(path.name for path in local[:12]) or "none"
        raise RunConfigError(f"{argument}: no run folder, and no name or MLflow id of a run on this machine ({names})")
    return nearest[0]


def _read(path: Path, name: str) -> ComparedRun:
    folder, outcome = RunFolder.open(path), identity(path).get("outcome")
    summary, metrics = folder.summary(), folder.metrics()
    state = STATES[outcome] if outcome else "finished" if "after" in summary else "unfinished"
    iterations = int(summary.get("iterations") or len(metrics))
    turns = int(summary.get("turns") or sum(row.get("turns", 0) for row in metrics))
    rows = folder.read_trajectories("after") if "after" in summary else []  # of a resumed run that has not ended yet: from its earlier end
    questions = {row["question_id"]: {key: row[key] for key in ("text", "answers", "counts")} for row in rows}
    return ComparedRun(name, flat_yaml(path / "config.yaml"), summary, read_fingerprints(path), iterations, turns, state, questions)


def compare_runs(runs: Sequence[ComparedRun]) -> Comparison:
    first, *others = runs
    ids = {run.name: _shared_questions(first, run) for run in others}
    enough = {run.name: (first.counts(ids[run.name]), run.counts(ids[run.name])) for run in others if len(ids[run.name]) >= FEWEST}
    tested = tested_differences(enough, SHOWN)
    differences = {
        run.name: {name: result for name, result in tested.get(run.name, {}).items() if name in first.after and name in run.after}
        for run in others
    }
    known = {run.name: {**_facts(run), **run.settings} for run in runs}
    keys = dict.fromkeys(key for of in known.values() for key in of if key not in UNIMPORTANT and not key.startswith("tracking."))
    values = {key: [of.get(key, "–") for of in known.values()] for key in keys}
    settings = {key: found for key, found in values.items() if any(value != found[0] for value in found)}
    shared = {name: len(found) for name, found in ids.items()}
    return Comparison(runs, caveats(runs, shared), differences, shared, settings)


def _shared_questions(one: ComparedRun, other: ComparedRun) -> list[str]:
    """Ids of the held-out questions that both were asked: the same id, text and answers."""
    found = other.questions
    return [id for id, asked in one.questions.items() if all(asked[key] == found.get(id, {}).get(key) for key in ("text", "answers"))]


def caveats(runs: Sequence[ComparedRun], shared: Mapping[str, int]) -> list[str]:
    """One line for each reason to doubt the comparison, settings apart. `shared`: as in `Comparison`."""
    first, measured, lines = runs[0], [run for run in runs if run.after], []
    for run in runs:
        if run.state != "finished" or not run.after:
            what = "its results are from before it was resumed" if run.after else "it has no results on held-out questions"
            lines.append(f"{run.name} is {run.state} after {run.iterations} iterations: {what}")
    for run in [run for run in measured if run is not first and first.after]:
        common, asked = shared[run.name], (len(run.questions), len(first.questions))
        if common < max(asked) or not common:
            use = "differences are over the shared ones" if common >= FEWEST else f"no paired differences with fewer than {FEWEST}"
            lines.append(f"{run.name} and {first.name} share {common} stored questions of {asked[0]} and {asked[1]}: {use}")
    return lines + failure_warnings({run.name: run.summary["after"] for run in measured})


def _facts(run: ComparedRun) -> dict[str, str]:
    kbs, splits = run.fingerprints.get("knowledge_bases", {}), run.fingerprints.get("dataset", {}).get("splits", {})
    found = {f"knowledge bases for {purpose}": ", ".join(f"{kb} {digest[:8]}" for kb, digest in of.items()) for purpose, of in kbs.items()}
    commit, changes, _ = str(run.summary.get("git_commit") or run.fingerprints.get("git_commit") or "–").partition("+")
    found["version of the code"] = commit[:10] + (" with uncommitted changes" if changes else "")
    return {"training questions": splits["training"]["fingerprint"], **found} if splits else found


def print_comparison(console: Console, found: Comparison) -> None:
    columns = ("state", "iterations", "turns", "train s", "best on validation", *SHOWN)
    table = results_table("runs, results on held-out questions, ± half a 95 % interval", "run", columns)
    for run in found.runs:
        seconds, best = run.summary.get("seconds", {}).get("train"), run.summary.get("best") or {}
        validated = f"{best['score']:.3f} (iteration {best['iteration']})" if "score" in best else "–"
        cells = (run.state, str(run.iterations), f"{run.turns:,}", f"{seconds:,.0f}" if seconds else "–", validated)
        table.add_row(run.name, *cells, *(shown(run.after.get(metric)) for metric in SHOWN))
    console.print(table)
    if any(found.differences.values()):
        title = f"minus {found.runs[0].name}, paired question by question; p by permutation, corrected (Holm)"
        rows = [(f"{name} ({found.shared[name]} questions)", differences) for name, differences in found.differences.items()]
        console.print(difference_table(title, "run", SHOWN, rows))
    if found.settings:
        table = results_table("where they differ", "setting", [run.name for run in found.runs])
        for key, values in found.settings.items():
            table.add_row(key, *map(str, values))
        console.print(table)
    for line in found.caveats:
        console.print(f"caveat: {line}", style="yellow", soft_wrap=True, markup=False, highlight=False)
