"""The pictures of a study, as small SVG files: mean over seeds as a line, from the lowest to the highest seed as a band."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

PARTS = 24
"""Places along the training at which curves are drawn: each is the mean of the iterations around it."""
COLOURS = {
    "outcome_grpo": "#d1495b",
    "step_grpo": "#00798c",
    "retrieval_cost": "#edae49",
    "one_step_off": "#6a4c93",
}
CHOICES = {
    "use_text": ("text", "#00798c"),
    "use_text_image": ("text-image", "#edae49"),
    "use_table": ("table", "#d1495b"),
    "use_stop": ("stop", "#555555"),
}


def draw(results: Mapping[str, Any], folder: Path) -> list[str]:
    """Names of the pictures that could be drawn."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    arms = [arm for arm in results["study"]["arms"] if any(curve["arm"] == arm for curve in results["curves"].values())]
    if not arms:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    start = results["study"].get("validation", {})
    drawn = []
    with plt.rc_context(
        {"svg.fonttype": "none", "svg.hashsalt": "study", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    ):
        for name, panels in {
            "learning": {
                "validation_f1_recall": "F1-Recall, validation questions, greedy",
                "validation_routing_accuracy": "routing accuracy, validation questions, greedy",
                "routing": "routing accuracy of sampled plan turns",
                "validation_retrievals_per_question": "retrievals a question, validation questions",
            },
        }.items():
            figure, axes = plt.subplots(2, 2, figsize=(8.6, 5.6), layout="constrained")
            for place, (metric, title) in zip(axes.flat, panels.items(), strict=True):
                for arm in arms:
                    band = over_seeds(results["curves"].values(), arm, metric, start.get(metric))
                    _line(place, band, COLOURS.get(arm, "#888888"), results["study"]["arms"][arm]["label"])
                place.set_title(title, fontsize=9, loc="left")
                place.grid(alpha=0.25)
                if metric != "validation_retrievals_per_question":
                    place.set_ylim(0, 1.02)
            for place in axes[1]:
                place.set_xlabel("sampled turns")
            axes[0][0].legend(frameon=False, fontsize=8)
            _save(figure, folder / f"{name}.svg")
            plt.close(figure)
            drawn.append(f"{name}.svg")
        figure, axes = plt.subplots(1, len(arms), figsize=(2.3 * len(arms) + 0.4, 2.7), layout="constrained", sharey=True, squeeze=False)
        for place, arm in zip(axes[0], arms, strict=True):
            for metric, (label, colour) in CHOICES.items():
                _line(place, over_seeds(results["curves"].values(), arm, metric), colour, label)
            place.set_title(results["study"]["arms"][arm]["label"], fontsize=8, loc="left")
            place.set_ylim(0, 0.8)
            place.grid(alpha=0.25)
            place.set_xlabel("sampled turns", fontsize=8)
        axes[0][0].set_ylabel("share of plan turns")
        axes[0][0].legend(frameon=False, fontsize=8)
        _save(figure, folder / "kb_use.svg")
        plt.close(figure)
        drawn.append("kb_use.svg")
    return drawn


def over_seeds(
    curves: Sequence[Mapping[str, Any]] | Any, arm: str, metric: str, start: float | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray] | None:
    """(turns, mean, lowest, highest) of the seeds of an arm; `start`: the value before training. None where nothing was measured.

    Metrics of every iteration are averaged in equal parts of the training; those that are measured now and then are joined as they are.
    """
    found = [curve["points"][metric] for curve in curves if curve["arm"] == arm and curve["points"].get(metric)]
    if not found:
        return None
    end = min(points[-1][0] for points in found)
    sparse = min(map(len, found)) <= PARTS
    begins = 0.0 if start is not None else max(points[0][0] for points in found)
    xs = np.linspace(begins, end, PARTS + 1)
    lines = []
    for points in found:
        x, y = np.array([[0.0, start], *points] if start is not None else points, dtype=float).T
        if not sparse:
            x, y = _in_parts(x, y)
        lines.append(np.interp(xs, x, y))
    stacked = np.stack(lines)
    return xs, stacked.mean(0), stacked.min(0), stacked.max(0)


def _in_parts(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    pieces = np.array_split(np.arange(len(x)), min(PARTS, len(x)))
    return np.array([x[piece].mean() for piece in pieces]), np.array([y[piece].mean() for piece in pieces])


def _line(place: Any, band: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray] | None, colour: str, label: str) -> None:
    if band is None:
        return
    xs, mean, low, high = band
    place.plot(xs, mean, color=colour, linewidth=1.6, label=label)
    place.fill_between(xs, low, high, color=colour, alpha=0.15, linewidth=0)


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, format="svg", facecolor="white", metadata={"Date": None})
