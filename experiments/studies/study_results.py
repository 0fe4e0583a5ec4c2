"""From the folders of a study to its results: results.json, tables.md and learning.svg."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from experiments.command_line.terminal import markdown_cell
from experiments.datasets import Dataset
from experiments.evaluation.evaluate_methods import measured_methods
from experiments.evaluation.evaluation_folder import Results
from experiments.evaluation.metrics import Counts, confusion
from experiments.evaluation.result_tables import difference_cell, difference_table, metric_table, results_table, shown
from experiments.evaluation.significance import Interval, holm, over_seeds, seeds_p, student
from experiments.report.charts import Panel, line_charts, points_of
from experiments.studies.plan import ARMS, COLD_START, POINTS, STEP_GRPO, Study, Training
from experiments.tracking.fingerprints import git_commit, machine
from experiments.tracking.run_folder import plain
from rollout.records import OUTSIDE, Question

COMPARED = (
    *("f1_recall", "exact_match", "routing_accuracy", "stop_accuracy", "premature_stop_rate", "retrievals_per_question", "hit_at_k"),
    *("format_rate", "tokens_per_question"),
)
LEARNING = ("routing", "validation_f1_recall", "validation_routing_accuracy", "validation_retrievals_per_question")
"""Metrics of iterations that are drawn, and averaged over a training: the mean shows how fast it learned."""
AREAS = ("routing_accuracy", "f1_recall")  # metrics whose validation curves have an area in the table
ROUTED = 0.9  # share of sampled plan turns that name the right knowledge base
BySeed = Mapping[int, list[Counts]]  # Seed -> counts of every held-out question


def measured_folder(study: Study, arm: str, seed: int) -> Path:
    """Where the evaluation folder of a policy is. In the sweep `arm` is sweep-POINT."""
    return study.folder / "measured" / f"{arm}-seed{seed}"


def study_results(study: Study, dataset: Dataset) -> dict[str, Any]:
    """Everything measured so far, with intervals; `missing` names the rest."""
    questions = [item for item in dataset.heldout if isinstance(item, Question) and item.family != OUTSIDE]
    settings, ids = study.settings, [question.id for question in questions]
    methods = measured_methods(study.base, dataset)
    counts = {arm: {m.name: _counts(study, arm, settings.seeds, m.name, ids) for m in methods} for arm in settings.arms}
    routers = {arm: of["policy"] for arm, of in counts.items() if of.get("policy")}
    swept: dict[str, tuple[Training, list[Counts]]] = {}
    for t in study.sweep:
        if t.finished and (found := _counts(study, f"sweep-{t.arm}", [t.seed], "policy", ids)):
            swept[t.arm] = t, found[t.seed]
    families = {name: [i for i, q in enumerate(questions) if q.family == name] for name in sorted({q.family for q in questions})}
    return {
        "machine": machine(),
        "commit": git_commit(),
        "date": time.strftime("%d %B %Y", time.gmtime()),
        "data": {"name": study.base.data.name, "questions": len(ids), "validation_questions": len(dataset.validation)},
        "settings": {"seeds": settings.seeds, "turns": settings.turns, "tokens": settings.tokens},
        "arms": {arm: {"label": ARMS[arm].label, "settings": ARMS[arm].settings} for arm in settings.arms},
        "methods": {method.name: {"label": method.label, "isolates": method.isolates} for method in methods},
        "missing": [
            *(f"{arm}, seed {s}, {m}" for arm, of in counts.items() for s in settings.seeds for m in of if s not in of[m]),
            *(f"sweep, {training.arm}" for training in study.sweep if training.arm not in swept),
        ],
        "metrics": {arm: {m: _metrics(found) for m, found in of.items() if found} for arm, of in counts.items()},
        "families": {
            arm: {name: over_seeds([[c[i] for i in places] for c in of.values()], "f1_recall") for name, places in families.items()}
            for arm, of in routers.items()
        },
        **{
            f"minus_{other}": _differences({arm: (found, routers[other]) for arm, found in routers.items() if arm != other})
            for other in (COLD_START, STEP_GRPO)
            if other in routers
        },
        "router_minus_method": {
            arm: _differences({m: (routers[arm], found) for m, found in counts[arm].items() if m != "policy"}) for arm in routers
        },
        "confusion": {arm: _confusion(study, arm, routers[arm]) for arm in routers},
        "curves": {
            t.name: {metric: _curve(t, metric) for metric in LEARNING} | {"arm": t.arm} for t in study.trainings if t.folder.metrics()
        },
        "areas": _areas(study, routers),
        "sweep": {point: _swept(*found, swept.get("default")) for point, found in swept.items()},
        "trainings": {t.name: _training(t) for t in study.trainings if t.finished},
    }


def _results(study: Study, arm: str, seed: int, method: str) -> Results:
    """Results of the newest evaluation of this policy."""
    folders = sorted(measured_folder(study, arm, seed).glob("*/settings.yaml"), key=lambda file: file.stat().st_mtime_ns)
    return Results(folders[-1].parent if folders else Path("nowhere"), method)


def _counts(study: Study, arm: str, seeds: Sequence[int], method: str, ids: Sequence[str]) -> dict[int, list[Counts]]:
    """Counts by seed, for the seeds for which every question was answered."""
    stored = {seed: _results(study, arm, seed, method) for seed in seeds}
    return {seed: results.counts(ids) for seed, results in stored.items() if results.rows.keys() >= set(ids)}


def _metrics(by_seed: BySeed) -> dict[str, Any]:
    return {metric: over_seeds(list(by_seed.values()), metric) for metric in COMPARED}


def _differences(pairs: Mapping[str, tuple[BySeed, BySeed]]) -> dict[str, dict[str, Any]]:
    """Name -> metric -> first minus second over the seeds of both; F1-Recall with p, corrected for the number of names (Holm)."""
    found, p_values = {}, {}
    for name, (first, second) in pairs.items():
        if seeds := [seed for seed in first if seed in second]:
            one, other = [first[seed] for seed in seeds], [second[seed] for seed in seeds]
            found[name] = {metric: over_seeds(one, metric, minus=other) for metric in COMPARED}
            p_values[name] = seeds_p(one, other, "f1_recall")
    for name, corrected in holm(p_values).items():
        found[name]["f1_recall"] |= {"p": p_values[name], "p_corrected": corrected}
    return found


def _confusion(study: Study, arm: str, seeds: Iterable[int]) -> dict[str, dict[str, int]]:
    """Right -> chosen -> plan turns of the router, all seeds."""
    found: dict[str, dict[str, int]] = {}
    rows = (row for seed in seeds for row in _results(study, arm, seed, "policy").rows.values())
    for (right, chosen), turns in sorted(confusion(rows).items()):
        found.setdefault(right, {})[chosen] = turns
    return found


def _curve(training: Training, metric: str) -> list[tuple[float, float]]:
    """(tokens sampled so far, those of found steps included; value)."""
    rows, before = training.folder.metrics(), training.folder.summary().get("gold_tokens", 0)
    tokens = dict(zip((row["iteration"] for row in rows), (before + _tokens(rows)).tolist(), strict=True))
    return [(tokens[iteration], round(value, 4)) for iteration, value in points_of(rows, metric)]


def _tokens(rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """(iterations,): tokens sampled so far."""
    return np.cumsum([row["sampled_tokens"] for row in rows])


def area(curve: Sequence[tuple[float, float]], start: float, before: float, end: float) -> float:
    """Mean of a learning curve over [0, end] tokens, by trapezoids: `start` up to `before` tokens, the last value after the last point."""
    xs, ys = np.array([(0.0, start), (before, start), *curve], float).T
    grid = np.unique([*xs[xs < end], end])
    return float(np.trapezoid(np.interp(grid, xs, ys), grid) / end)


def _areas(study: Study, routers: Mapping[str, BySeed]) -> dict[str, dict[str, Interval]]:
    """Arm -> metric -> area under its validation curve up to `study.tokens`, with intervals over seeds; `minus_ARM` is the paired difference of the
    areas under routing. Every curve starts with what the cold start reaches on the held-out questions."""
    end, start = study.settings.tokens, routers.get(COLD_START)
    if not end or not start:
        return {}
    areas: dict[str, dict[str, dict[int, float]]] = {}
    for metric in AREAS:
        before = over_seeds(list(start.values()), metric)["value"]
        for t in (t for t in study.trainings if t.finished):
            value = area(_curve(t, f"validation_{metric}"), before, t.folder.summary().get("gold_tokens", 0), end)
            areas.setdefault(t.arm, {}).setdefault(metric, {})[t.seed] = value
    routing = {arm: of["routing_accuracy"] for arm, of in areas.items()}
    pairs = {
        arm: {other: [(routing[arm][s], routing[other][s]) for s in routing[arm] if s in routing[other]] for other in areas}
        for arm in areas
    }
    return {
        arm: {metric: student(list(by_seed.values())) for metric, by_seed in of.items()}
        | {f"minus_{other}": student([x - y for x, y in both]) for other, both in pairs[arm].items() if other != arm and both}
        for arm, of in areas.items()
    }


def _training(training: Training) -> dict[str, Any]:
    """Cost of the training, in all and until sampled plan turns first route right (None: never); and the mean of each `LEARNING` metric over it."""
    found, rows = training.folder.summary(), training.folder.metrics()
    tokens = found.get("gold_tokens", 0) + _tokens(rows)
    routed = np.flatnonzero([row.get("routing", 0.0) >= ROUTED for row in rows])
    courses = {metric: [value for _, value in points_of(rows, metric)] for metric in LEARNING}
    return {
        **{"arm": training.arm, "seed": training.seed, "best": found["best"].get("iteration")},
        **{key: found[key] for key in ("turns", "iterations", "policy_version", "sampled_tokens")},
        "sampled_tokens_until_routed": int(tokens[routed[0]]) if len(routed) else None,
        "seconds": {key: round(value, 1) for key, value in found["seconds"].items()},
        "learning": {metric: round(sum(values) / len(values), 5) for metric, values in courses.items() if values},
    }


def _swept(training: Training, counts: list[Counts], default: tuple[Training, list[Counts]] | None) -> dict[str, Any]:
    """A point of the sweep: metrics of its router, with intervals over questions, and the paired difference to `default`."""
    point = {"settings": POINTS[training.arm].settings, **_training(training), "metrics": _metrics({0: counts})}
    if default and default[0] is not training:
        point |= _differences({"minus_default": ({0: counts}, {0: default[1]})})
    return point


def write_results(results: Mapping[str, Any], folder: Path) -> Path:
    """results.json, tables.md and, where something was trained, learning.svg. Returns the tables."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(plain(results), indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    missing = [f"Not measured: {'; '.join(results['missing'])}"] if results["missing"] else []
    parts = [*missing, *(markdown(table) for table in tables(results) if table.row_count)]
    (folder / "tables.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    panels = [
        Panel(metric, {ARMS[arm].label: _mean_curve(results, arm, metric) for arm in results["arms"]}, x="sampled tokens")
        for metric in LEARNING
    ]
    if chart := line_charts(panels, "learning", columns=2):
        (folder / "learning.svg").write_text(chart, encoding="utf-8")
    return folder / "tables.md"


def _mean_curve(results: Mapping[str, Any], arm: str, metric: str) -> list[tuple[float, float]]:
    """Mean over seeds, up to the tokens that all of them reached."""
    curves = [np.array(curve[metric], dtype=float) for curve in results["curves"].values() if curve["arm"] == arm and curve[metric]]
    if not curves:
        return []
    turns = [x for x in curves[0][:, 0] if x <= min(curve[-1, 0] for curve in curves)]
    return list(zip(turns, np.mean([np.interp(turns, *curve.T) for curve in curves], axis=0).tolist(), strict=True))


def tables(results: Mapping[str, Any]) -> list[Table]:
    """The main results as tables."""
    arms = {arm: found["label"] for arm, found in results["arms"].items() if results["metrics"].get(arm, {}).get("policy")}
    metrics = {label: results["metrics"][arm] for arm, label in arms.items()}
    found = [metric_table("The router of each arm", COMPARED, [(label, of["policy"]) for label, of in metrics.items()], "arm")]
    for other in (COLD_START, STEP_GRPO):
        rows = [(arms[arm], of) for arm, of in results.get(f"minus_{other}", {}).items()]
        found.append(difference_table(f"Router minus that of {ARMS[other].label}, paired", "arm", COMPARED, rows))
    if results["areas"]:
        found.append(_area_table(results))
    methods = {name: method["label"] for name, method in results["methods"].items()}
    f1 = [(label, {arm: of[name]["f1_recall"] for arm, of in metrics.items() if name in of}) for name, label in methods.items()]
    found.append(metric_table("f1_recall of every method with every policy", list(metrics), f1))
    families = {arms[arm]: of for arm, of in results["families"].items() if arm in arms}
    by_family = [(name, {arm: of[name] for arm, of in families.items()}) for name in next(iter(families.values()), {})]
    found.append(metric_table("f1_recall of the router by family", list(metrics), by_family, "family"))
    points = {f"{name}, seed {point['seed']}": point for name, point in results["sweep"].items()}
    found.append(metric_table("Sweep", COMPARED, [(name, point["metrics"]) for name, point in points.items()], "point"))
    differing = [(name, point["minus_default"]) for name, point in points.items() if "minus_default" in point]
    return [*found, difference_table("Sweep, minus the default, paired", "point", COMPARED, differing)]


def _area_table(results: Mapping[str, Any]) -> Table:
    """A row for each trained arm: its areas, and what that of its routing has over those of the other arms."""
    areas, end = results["areas"], results["settings"]["tokens"]
    title = f"Area under the validation curves over {end:,} sampled tokens; differences are of routing"
    table = results_table(title, "arm", (*AREAS, *(f"minus {arm}" for arm in areas)))
    for arm, of in areas.items():
        differences = (difference_cell("routing_accuracy", of.get(f"minus_{other}")) for other in areas)
        table.add_row(arm, *(shown(of.get(metric)) for metric in AREAS), *differences)
    return table


def markdown(table: Table) -> str:
    """The table in Markdown, under its title; cells with a colour on the terminal are bold."""
    rows: list[list[Any]] = [[column.header for column in table.columns], ["---"] * len(table.columns)]
    for cells in zip(*(column.cells for column in table.columns), strict=True):
        rows.append([f"**{cell}**" if getattr(cell, "style", "") else str(cell) for cell in cells])
    return f"## {table.title}\n\n" + "\n".join(f"| {' | '.join(markdown_cell(str(cell)) for cell in row)} |" for row in rows)
