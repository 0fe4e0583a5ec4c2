"""Where the time of a run went, and that of an iteration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.charts import line_chart, share_chart

NAMES = {
    "set_up": "set up",
    "evaluate_before": "evaluate before",
    "baselines": "other ways of routing",
    "score_heldout": "score held-out turns",
    "train": "train",
    "validate": "validate",
    "checkpoint": "save",
    "evaluate_after": "evaluate after",
}
"""Phases of a run, in their order."""
TRAIN = {"train_push": "broadcast weights", "train_rollout": "roll out", "train_score": "score", "train_learn": "update"}
"""Phases of an iteration, in their order."""


def time_section(summary: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """`rows`: metrics.jsonl. Empty without timings."""
    seconds: Mapping[str, float] = summary.get("seconds", {})
    if not seconds:
        return ""
    known = {**NAMES, **{phase: phase.replace("_", " ") for phase in seconds if phase not in NAMES and not phase.startswith("train_")}}
    run = {name: seconds[phase] for phase, name in known.items() if seconds.get(phase)}
    parts = [share_chart(run, label="The run")]
    iterations = summary.get("iterations", 0)
    if iterations:
        phases = {name: seconds.get(phase, 0.0) for phase, name in TRAIN.items()}
        phases["the rest"] = max(seconds.get("train", 0.0) - sum(phases.values()), 0.0)
        for phase in ("validate", "checkpoint"):
            phases[NAMES[phase]] = seconds.get(phase, 0.0)
        mean = {name: spent / iterations for name, spent in phases.items() if spent / iterations >= 0.0005}
        parts.append(share_chart(mean, label=f"An iteration, mean of {iterations}"))
    by_iteration = {
        name: [(row["iteration"], row[key]) for row in rows if isinstance(row.get(key), int | float)]
        for phase, name in TRAIN.items()
        if (key := phase.replace("train_", "seconds_"))
    }
    parts.append(line_chart({name: found for name, found in by_iteration.items() if found}, label="Seconds of each iteration", low=0))
    side_by_side = summary.get("config", {}).get("train", {}).get("overlap")
    overlap = "<p>Rollout and update ran side by side: their seconds overlap.</p>" if side_by_side else ""
    return f"<h2 id='time'>Where the time went</h2>{overlap}<div class='stack'>{''.join(parts)}</div>"
