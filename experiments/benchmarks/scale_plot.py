"""The driver's seconds over the nodes of a cluster, and the broadcast's over its receivers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from experiments.benchmarks.scale import Fit, Point


def plot_scale(points: Sequence[Point], line: Fit, sent: Sequence[tuple[int, float, float]], path: Path) -> None:
    """`sent`: (receivers, seconds of one broadcast, seconds one after the other); nothing where links could not be limited."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 4), layout="constrained")
    nodes = [point.nodes for point in points]
    left.plot(nodes, [point.seconds for point in points], "s-", color="0.6", label="whole iteration")
    left.plot(nodes, [point.busy for point in points], "o", label="the driver works")
    left.plot(
        nodes,
        [line.at(count) for count in nodes],
        "-",
        color="C0",
        alpha=0.5,
        label=f"{line.base:.2g} s + {1e3 * line.slope:.3g} ms x nodes",
    )
    left.axhline(points[0].rollout_s, color="C3", ls=":", label="sampling, by itself")
    left.set(xlabel="nodes (4 simulated workers and learner ranks each)", ylabel="seconds of an iteration", xscale="log", yscale="log")
    left.set_xticks(nodes, [str(count) for count in nodes])
    left.legend(fontsize=8)
    for index, label in ((1, "one broadcast"), (2, "one node after the other")):
        right.plot([entry[0] for entry in sent], [entry[index] for entry in sent], "o-", label=label)
    right.set(xlabel="receiving nodes, links of the same speed", ylabel="seconds")
    if sent:
        right.legend(fontsize=8)
    for axes in (left, right):
        axes.grid(alpha=0.25)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)
