"""CPU time of the driver for one trajectory over the number of rollout workers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def plot_driver(found: Sequence[tuple[int, float]], path: Path) -> None:
    """`found`: (workers, microseconds of CPU a trajectory)."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 4), layout="constrained")
    axes.plot(*zip(*found, strict=True), marker="o")
    axes.set(xlabel="rollout workers (simulated), 64 episodes in flight on each", ylabel="driver CPU a trajectory, µs", xscale="log")
    axes.set_xticks([workers for workers, _ in found], [str(workers) for workers, _ in found])
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.25)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)
