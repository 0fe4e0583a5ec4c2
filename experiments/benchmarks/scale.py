"""How many nodes one driver keeps busy: the training loop with 1 to 64 simulated nodes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from experiments.benchmarks.bench_results import BenchResult
from experiments.benchmarks.simulated_cluster import SimulatedCluster, SimulatedLoop, expected_seconds
from experiments.cluster.ray_session import start_ray
from experiments.config import ClusterConfig, TrainConfig

NODES = (1, 2, 4, 8, 16, 32, 64)
CPU_US, CARRIED_KB = 500.0, 4.0
"""Bars for one trajectory: CPU of the driver, bytes through it."""


def scale_rows(quick: bool) -> Iterator[BenchResult]:
    with start_ray(TrainConfig(ray=ClusterConfig(num_cpus=8))):
        cluster = SimulatedCluster(speed=4 if quick else 1)
        yield from loop_rows((1, 4) if quick else NODES, cluster)
        cluster.close()


def line_through(nodes: Sequence[float], seconds: Sequence[float]) -> tuple[float, float]:
    """(base, slope) of `base + slope * nodes`, by least squares of the relative error."""
    slope, base = np.polyfit(np.asarray(nodes, float), np.asarray(seconds), 1, w=1 / np.asarray(seconds))
    return float(base), float(slope)


def loop_rows(nodes: Sequence[int], cluster: SimulatedCluster) -> Iterator[BenchResult]:
    rolling, learning = expected_seconds(cluster.speed)
    measured = []
    for count in nodes:
        loop = SimulatedLoop(count, cluster)
        loop.iterate()  # processes start, pages are touched
        found = loop.iterate()
        measured.append(found.busy)
        name = f"loop, {count} nodes, {found.trajectories:,} trajectories an iteration"
        shares = ", ".join(f"{phase} {1e6 * cpu / found.trajectories:,.0f}" for phase, (_, cpu) in found.phases.items())
        busy, carried = 1e6 * found.busy / found.trajectories, (found.read + found.written) / found.trajectories / 1e3
        largest = count == nodes[-1]  # no bar for fewer nodes: the fixed cost of an iteration dominates
        cpu_name = f"{name}: CPU of the driver for one trajectory ({shares})"
        yield BenchResult.of(cpu_name, busy, "us", bar=CPU_US if largest else None, at_most=largest)
        yield BenchResult.of(f"{name}: bytes read and written by the driver for one", carried, "kB", bar=CARRIED_KB, at_most=True)
        yield BenchResult.of(f"{name}: the driver's thread is busy", found.busy / found.seconds, "of 1")
        yield BenchResult.of(f"{name}: seconds, against those of a driver that takes no time", found.seconds, "s", rolling + learning)
    base, slope = line_through(nodes, measured)
    name = f"driver: nodes at which it works as long as workers and learners do (fit {base:.3g} s + {1e3 * slope:.3g} ms x nodes)"
    yield BenchResult.of(name, (rolling + learning - base) / slope, "nodes")
    yield BenchResult.of("driver: trajectories a second, at most", found.trajectories / nodes[-1] / slope, "trajectories/s")
