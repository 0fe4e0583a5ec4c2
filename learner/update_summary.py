"""The metrics of one update, out of what each rank says of each step."""

from __future__ import annotations

from collections import defaultdict

from learner.losses import MAXIMA

PER_TOKEN = ("ratio", "clip_fraction", "entropy", "kl", "correction")
"""Metrics that ranks send as sums over tokens."""


def combined(by_rank: list[list[dict[str, float]]]) -> list[dict[str, float]]:
    """The metrics of each step over all ranks: sums are added; maxima, times and the gradient norm, which all ranks share, are not."""
    steps = []
    for ranks in zip(*by_rank, strict=True):
        step: dict[str, float] = defaultdict(float)
        for metrics in ranks:
            for name, value in metrics.items():
                step[name] = max(step[name], value) if name in (*MAXIMA, "grad_norm", "seconds", "ended") else step[name] + value
        steps.append(dict(step))
    return steps


def summary_of(steps: list[dict[str, float]]) -> dict[str, float]:
    if not steps:
        return {"steps": 0.0, "learned_tokens": 0.0}
    tokens = sum(step["tokens"] for step in steps)
    means = {name: sum(step[name] for step in steps) / tokens for name in PER_TOKEN if name in steps[0]}
    return {
        **means,
        "mismatch": steps[0]["mismatch"] / steps[0]["tokens"],
        "mismatch_max": steps[0]["mismatch_max"],
        "mismatch_k3": steps[0]["mismatch_k3"] / steps[0]["tokens"],
        "ratio_max": max(step["ratio_max"] for step in steps),
        "loss": sum(step["loss"] for step in steps) / len(steps),
        "grad_norm": sum(step["grad_norm"] for step in steps) / len(steps),
        "steps": float(len(steps)),
        "learned_tokens": tokens,
        "tokens_per_second": sum(step["row_tokens"] for step in steps) / sum(step["seconds"] for step in steps),
    }
