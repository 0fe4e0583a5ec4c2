"""Every run against the first: measure by measure, over the questions that both were asked."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from experiments.comparison.caveats import FEWEST, same_questions
from experiments.comparison.runs import ComparedRun
from experiments.measures import MEASURES, paired_difference
from experiments.significance import holm, permutation_p

TESTED = ("f1_recall", "exact_match", "routing_accuracy", "stop_accuracy", "retrievals_per_question")
"""Measures that get a p value."""
UNIMPORTANT = frozenset({"name", "runs_folder", "train.resume", "learner.seed"})
"""Settings that differ without meaning anything (`learner.seed` follows `train.seed`)."""


@dataclass(frozen=True)
class Difference:
    """One run minus the first one."""

    run: ComparedRun
    questions: int
    """That both were asked; too few of them, and there are no figures."""
    figures: dict[str, dict[str, Any]]
    """Measure -> {value, low, high}, and for those of `TESTED` `p` and `p_corrected` (Holm, over the runs). Only what both have measured."""


def differences(runs: Sequence[ComparedRun]) -> list[Difference]:
    """Paired, question by question; nothing where there is nothing to pair."""
    first, found = runs[0], []
    for run in runs[1:]:
        ids = same_questions(first, run)
        before, after = [first.questions[id].counts for id in ids], [run.questions[id].counts for id in ids]
        figures = {}
        if len(ids) >= FEWEST:
            both = [name for name in MEASURES if name in first.after and name in run.after]
            intervals = paired_difference(before, after)
            figures = {name: dataclasses.asdict(intervals[name]) for name in both if not math.isnan(intervals[name].value)}
            for name in set(TESTED) & set(figures):
                figures[name]["p"] = permutation_p(before, after, name)
        found.append(Difference(run, len(ids), figures))
    for name in TESTED:
        for run_name, p in holm({d.run.name: d.figures[name]["p"] for d in found if name in d.figures}).items():
            next(d for d in found if d.run.name == run_name).figures[name]["p_corrected"] = p
    return found


def differing_settings(runs: Sequence[ComparedRun]) -> dict[str, list[Any]]:
    """Dotted key -> value in each run, for keys that do not have one value in all of them; None where the code of a run did not know the key."""
    keys = dict.fromkeys(key for run in runs for key in run.settings if key not in UNIMPORTANT and not key.startswith("tracking."))
    values = {key: [run.settings.get(key) for run in runs] for key in keys}
    return {key: found for key, found in values.items() if any(value != found[0] for value in found)}


def unknown_in_some(runs: Sequence[ComparedRun], settings: dict[str, list[Any]]) -> list[str]:
    """Keys that the code of some runs did not know yet, or no longer."""
    return [key for key in settings if any(key not in run.settings for run in runs)]
