"""Learning curves as a PNG, of one run or of several over each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.charts import moving_mean
from experiments.tracking.metric_names import is_number

CURVES = {
    "reward": "reward of a turn",
    "outcome": "outcome reward",
    "routing": "plan turns that named the right knowledge base",
    "stop": "plan turns that stopped when they should",
    "retrievals": "retrievals per question",
    "validation_f1_recall": "F1-Recall on validation questions",
    "entropy": "entropy, nats",
    "grad_norm": "gradient norm",
    "tokens_per_second": "sampled tokens per second, thousands",
}
"""Key of metrics.jsonl -> what it is called above its curve."""


def points_of(rows: Sequence[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    """(iteration, value in the unit that `CURVES` names) wherever there is a number."""
    unit = 1000.0 if key == "tokens_per_second" else 1.0
    return [(float(row["iteration"]), float(row[key]) / unit) for row in rows if is_number(row.get(key))]


def plot_curves(runs: Mapping[str, Sequence[Mapping[str, Any]]], file: Path) -> None:
    """Thin: each iteration; thick: moving mean. Curves that no run has are left out. Any thread may call it: it needs no state of pyplot."""
    from matplotlib.figure import Figure

    drawn = {key: label for key, label in CURVES.items() if any(points_of(rows, key) for rows in runs.values())}
    across = min(3, len(drawn))
    down = -(-len(drawn) // across)
    figure = Figure(figsize=(4.6 * across, 3.1 * down + 0.5), layout="constrained")
    for place, (key, label) in enumerate(drawn.items()):
        axes = figure.add_subplot(down, across, place + 1)
        for number, (name, rows) in enumerate(runs.items()):
            found = points_of(rows, key)
            colour = f"C{number % 10}"
            axes.plot(*zip(*found, strict=True) if found else ([], []), color=colour, alpha=0.25 if len(found) > 12 else 1, linewidth=0.8)
            smooth = moving_mean(found)
            axes.plot(*zip(*smooth, strict=True) if smooth else ([], []), color=colour, linewidth=1.8, label=name)
            if 0 < len(found) <= 12:
                axes.plot(*zip(*found, strict=True), color=colour, marker="o", linestyle="", markersize=4)
        axes.set_title(label, fontsize=10)
        axes.grid(alpha=0.3)
        axes.tick_params(labelsize=8)
        axes.set_xlabel("iteration", fontsize=8)
    if len(runs) > 1:
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(len(runs), 5), fontsize=9, frameon=False)
    figure.savefig(file, dpi=100, metadata={"Software": None})
