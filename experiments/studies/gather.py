"""From the folders of a study to its results: every figure of the page, with its interval, as plain data."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.datasets import Dataset
from experiments.evaluation_folder import Results
from experiments.measures import KB, Counts
from experiments.methods import has_gold, measured_methods
from experiments.provenance import git_commit, machine
from experiments.significance import holm
from experiments.studies.confusion import routing_confusion, together
from experiments.studies.plan import ARMS, COLD_START, POINTS, STEP_GRPO, Study, Training
from experiments.studies.seeds import figure, mean_over_seeds, p_value
from experiments.studies.training import folder_of, is_finished
from rollout.records import Question

MEASURED = (
    *("f1_recall", "exact_match", "routing_accuracy", "stop_accuracy", "premature_stop_rate", "retrievals_per_question", "hit_at_k"),
    *("format_rate", "tokens_per_question"),
)
CURVES = (
    *("validation_f1_recall", "validation_routing_accuracy", "validation_retrievals_per_question", "validation_stop_accuracy"),
    *("reward_plan", "routing", "retrievals", "use_text", "use_text_image", "use_table", "use_stop"),
)
"""Metrics of an iteration that are drawn."""
COURSE = ("routing", "validation_f1_recall")
"""Metrics whose mean over a training says how fast it learned: of sampled plan turns, and of the validation questions now and then."""
Measured = dict[str, dict[int, list[Counts]]]
"""Method -> seed -> counts of every held-out question."""


def gather(study: Study, dataset: Dataset) -> dict[str, Any]:
    """What is there so far; `missing` names what is not."""
    kbs = [source.name for source in dataset.evaluation_kbs]
    methods = measured_methods(study.base, kbs, has_gold(dataset.heldout))
    arms = study.settings.arms
    measured = {arm: _measured(study, dataset, arm, [m.name for m in methods], study.settings.seeds) for arm in arms}
    missing = [
        f"{ARMS[arm].label}, seed {seed}{lacking}"
        for arm in arms
        for seed in study.settings.seeds
        if (lacking := _lacking([method.name for method in methods if seed not in measured[arm][method.name]], len(methods)))
    ]
    sweep, unswept = _sweep(study, dataset)
    started = study.folder / "start.json"
    clock = study.folder / "seconds.json"
    return {
        "study": {
            **_settings(study, dataset),
            "seconds": json.loads(clock.read_text(encoding="utf-8")) if clock.exists() else {},
            "methods": {method.name: {"label": method.label, "isolates": method.isolates} for method in methods},
            **(json.loads(started.read_text(encoding="utf-8")) if started.exists() else {}),
        },
        "missing": missing + unswept,
        "trainings": {t.name: _training(t) for t in study.trainings if is_finished(t)},
        "figures": {arm: {m: _figures(found) for m, found in of_arm.items() if found} for arm, of_arm in measured.items()},
        "kb_shares": {arm: _shares(of_arm["policy"], kbs) for arm, of_arm in measured.items() if of_arm.get("policy")},
        "families": {arm: _families(study, dataset, of_arm["policy"]) for arm, of_arm in measured.items() if of_arm.get("policy")},
        "against_start": _against(measured, arms, COLD_START),
        "against_step": _against(measured, arms, STEP_GRPO),
        "against_methods": {arm: _against_methods(of_arm) for arm, of_arm in measured.items() if of_arm.get("policy")},
        "confusion": {
            arm: _confusion(study, dataset, arm, list(found["policy"])) for arm, found in measured.items() if found.get("policy")
        },
        "curves": {t.name: _curve(t) for t in study.trainings if folder_of(t).metrics()},
        "on_the_way": _on_the_way(study),
        "sweep": sweep,
    }


def _lacking(methods: Sequence[str], of: int) -> str:
    """What a policy was not measured with, as the end of a line; empty: nothing."""
    return "" if not methods else ": all methods" if len(methods) == of else f": {', '.join(methods)}"


def write_start(study: Study, validation: Mapping[str, float]) -> None:
    """Where and when the study began; `validation`: what the policy that training starts from does on the validation questions."""
    facts = {
        "machine": machine(),
        "commit": git_commit(),
        "began": time.strftime("%d %B %Y", time.gmtime()),
        "load": round(os.getloadavg()[2], 1),
        "validation": {f"validation_{name}": round(value, 5) for name, value in validation.items()},
    }
    study.folder.mkdir(parents=True, exist_ok=True)
    (study.folder / "start.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")


def _settings(study: Study, dataset: Dataset) -> dict[str, Any]:
    settings = study.settings
    return {
        "arms": {arm: {"label": ARMS[arm].label, "settings": list(ARMS[arm].settings)} for arm in settings.arms},
        "seeds": list(settings.seeds),
        "turns": settings.turns,
        "sweep_turns": settings.sweep_turns,
        "questions": len(dataset.heldout),
        "validation_questions": len(dataset.validation),
        "samples": study.base.evaluation.samples,
        "temperature": study.base.evaluation.temperature,
        "data": study.base.data.name,
        "workers": study.base.train.num_rollout_workers,
    }


def questions_of(dataset: Dataset) -> list[Question]:
    """Those that every policy was asked."""
    return [item for item in dataset.heldout if isinstance(item, Question)]


def results_of(study: Study, arm: str, seed: int, method: str) -> Results:
    """What was measured of an arm (or `sweep-POINT`), question by question."""
    place = study.folder / "measured" / f"{arm}-seed{seed}"
    newest = place / "newest"
    name = newest.read_text(encoding="utf-8") if newest.exists() else "nothing"
    return Results(place / name / f"{method.replace(':', '-')}.jsonl")


def _measured(study: Study, dataset: Dataset, arm: str, methods: Sequence[str], seeds: Sequence[int]) -> Measured:
    ids, found = [question.id for question in questions_of(dataset)], {}
    for method in methods:
        stored = {seed: results_of(study, arm, seed, method) for seed in seeds}
        found[method] = {seed: results.counts(ids) for seed, results in stored.items() if all(id in results.rows for id in ids)}
    return found


def _training(training: Training) -> dict[str, Any]:
    found = folder_of(training).summary()
    kept = {key: found[key] for key in ("turns", "iterations", "policy_version", "sampled_tokens")}
    seconds = {key: round(value, 1) for key, value in found["seconds"].items()}
    return {"arm": training.arm, "seed": training.seed, **kept, "best": found["best"].get("iteration"), "seconds": seconds}


def _figures(by_seed: Mapping[int, list[Counts]]) -> dict[str, Any]:
    return {name: figure(list(by_seed.values()), name).rounded() for name in MEASURED}


def _shares(by_seed: Mapping[int, list[Counts]], kbs: Sequence[str]) -> dict[str, Any]:
    return {kb: figure(list(by_seed.values()), f"{KB}{kb}").rounded() for kb in kbs}


def _families(study: Study, dataset: Dataset, by_seed: Mapping[int, list[Counts]]) -> dict[str, Any]:
    families = sorted({question.family for question in questions_of(dataset)})

    def of(family: str) -> list[list[Counts]]:
        return [[c for c, q in zip(counts, questions_of(dataset), strict=True) if q.family == family] for counts in by_seed.values()]

    return {family: {"questions": len(of(family)[0]), "f1_recall": figure(of(family), "f1_recall").rounded()} for family in families}


def _against(measured: Mapping[str, Measured], arms: Sequence[str], other: str) -> dict[str, Any]:
    """Arm -> measure -> the router of the arm minus that of `other`, seed by seed; p values corrected for the number of arms."""
    if not measured.get(other, {}).get("policy"):
        return {}
    return _differences(
        {arm: measured[arm]["policy"] for arm in arms if arm != other and measured[arm].get("policy")}, measured[other]["policy"]
    )


def _against_methods(of_arm: Measured) -> dict[str, Any]:
    """Method -> measure -> the router minus the method, with the same policy; p values corrected for the number of methods."""
    others = {method: found for method, found in of_arm.items() if method != "policy" and found}
    return _differences(others, of_arm["policy"], turned=True)


def _differences(firsts: Mapping[str, dict[int, list[Counts]]], other: dict[int, list[Counts]], turned: bool = False) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, first in firsts.items():
        seeds = [seed for seed in first if seed in other]
        if not seeds:
            continue
        a, b = [first[seed] for seed in seeds], [other[seed] for seed in seeds]
        if turned:
            a, b = b, a
        found[name] = {measure: figure(a, measure, minus=b).rounded() for measure in MEASURED}
        found[name]["f1_recall"]["p"] = p_value(a, b, "f1_recall")
    for name, corrected in holm({name: of["f1_recall"]["p"] for name, of in found.items()}).items():
        found[name]["f1_recall"]["p_corrected"] = round(corrected, 5)
        found[name]["f1_recall"]["p"] = round(found[name]["f1_recall"]["p"], 5)
    return found


def _confusion(study: Study, dataset: Dataset, arm: str, seeds: Sequence[int]) -> dict[str, Any]:
    gold = {question.id: question.gold_steps for question in questions_of(dataset) if question.gold_steps is not None}
    steps = study.base.rollout.max_steps
    return together(routing_confusion(results_of(study, arm, seed, "policy").rows.values(), gold, steps) for seed in seeds)


def _curve(training: Training) -> dict[str, Any]:
    """Each metric as [turns sampled so far, value] points."""
    points: dict[str, list[list[float]]] = {}
    turns = 0
    for row in folder_of(training).metrics():
        turns += row["turns"]
        for name in CURVES:
            if isinstance(row.get(name), int | float):
                points.setdefault(name, []).append([turns, round(row[name], 4)])
    return {"arm": training.arm, "seed": training.seed, "points": points}


def _on_the_way(study: Study) -> dict[str, Any]:
    """Metric -> arm -> its mean over the course of the training, and how far it is from that of Step-GRPO: how fast it was learned."""
    found: dict[str, dict[str, dict[int, float]]] = {name: {} for name in COURSE}
    for training in study.trainings:
        for name in COURSE:
            if is_finished(training) and (mean := _course(training, name)) is not None:
                found[name].setdefault(training.arm, {})[training.seed] = mean
    return {name: {arm: _beside_step(by_seed, of.get(STEP_GRPO, {})) for arm, by_seed in of.items()} for name, of in found.items()}


def _course(training: Training, name: str) -> float | None:
    values = [row[name] for row in folder_of(training).metrics() if isinstance(row.get(name), int | float)]
    return sum(values) / len(values) if values else None


def _beside_step(by_seed: Mapping[int, float], step: Mapping[int, float]) -> dict[str, Any]:
    less = [value - step[seed] for seed, value in by_seed.items() if seed in step]
    return {**mean_over_seeds(list(by_seed.values())).rounded(), "against_step": mean_over_seeds(less).rounded()}


def _sweep(study: Study, dataset: Dataset) -> tuple[dict[str, Any], list[str]]:
    """Point -> what its router does, and the paired difference to `default`; and the points that are not measured."""
    ids = [question.id for question in questions_of(dataset)]
    found: dict[str, list[Counts]] = {}
    for training in study.sweep:
        results = results_of(study, f"sweep-{training.arm}", training.seed, "policy")
        if is_finished(training) and all(id in results.rows for id in ids):
            found[training.arm] = results.counts(ids)
    names = ("f1_recall", "routing_accuracy", "retrievals_per_question", "stop_accuracy")
    points = {}
    for name, counts in found.items():
        point = POINTS[name]
        figures = {measure: _one_seed(counts, measure) for measure in names}
        against = {measure: _one_seed(counts, measure, found["default"]) for measure in names} if "default" in found else {}
        training = next(t for t in study.sweep if t.arm == name)
        points[name] = {
            "factor": point.factor,
            "value": point.value,
            "seed": point.seed,
            "turns": folder_of(training).summary()["turns"],
            "on_the_way": round(_course(training, "routing") or 0.0, 5),
            "figures": figures,
            "against_default": {} if name == "default" else against,
        }
    return points, [f"sweep, {training.arm}" for training in study.sweep if training.arm not in found]


def _one_seed(counts: list[Counts], measure: str, minus: list[Counts] | None = None) -> dict[str, Any]:
    return figure([counts], measure, minus=None if minus is None else [minus]).rounded()
