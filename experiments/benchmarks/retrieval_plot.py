"""Queries a second over the size of a knowledge base."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path


def plot_growth(found: Mapping[int, Sequence[tuple[int, float]]], path: Path) -> None:
    """`found`: number of shards -> (vectors, queries/s), drawn log-log."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 4), layout="constrained")
    for shards, points in sorted(found.items()):
        axes.plot(*zip(*points, strict=True), marker="o", label=f"{shards} shard{'s' * (shards > 1)}")
    axes.set(
        xscale="log", yscale="log", xlabel="vectors", ylabel="queries/s, batch 256", title="Exact search through actors, 384 dimensions"
    )
    axes.grid(which="both", alpha=0.25)
    axes.legend(frameon=False)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)
