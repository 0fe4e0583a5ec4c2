"""How many nodes one driver keeps busy: the loop of training with 1 to 64 simulated nodes, and weights on their way to many receivers."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from experiments.benchmarks.row import Row
from experiments.scaling_arithmetic import tree_times

if TYPE_CHECKING:
    from experiments.benchmarks.simulated_cluster import SimulatedCluster

NODES = (1, 2, 4, 8, 16, 32, 64)
RECEIVERS = (1, 2, 4, 8, 16)
LINK_MBIT_PER_S, SENT_BYTES = 200, 8 * 2**20
PUSHED_BUCKETS = 92
"""Of a 7B policy in bfloat16 (`scaling_arithmetic.BUCKETS_7B`)."""


def scale_rows(quick: bool) -> Iterator[Row]:
    from experiments.benchmarks.recorded_episodes import record_episodes
    from experiments.benchmarks.scale_plot import plot_scale
    from experiments.benchmarks.simulated_cluster import SimulatedCluster
    from experiments.cluster import start_ray
    from experiments.config import ClusterConfig, TrainConfig

    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # gloo looks up names that addresses of our own do not have
    sent: list[tuple[int, float, float]] = []
    recorded = record_episodes(16)
    points: list[Point] = []
    with start_ray(TrainConfig(ray=ClusterConfig(num_cpus=8))):
        cluster = SimulatedCluster(recorded, speed=4 if quick else 1)
        yield from byte_rows(cluster)
        yield from loop_rows((1, 4) if quick else NODES, cluster, points)
        yield from collector_rows(2 if quick else 16, cluster)
        cluster.close()
        yield from push_rows((1, 8) if quick else (1, 8, 64, 256))
    yield from link_rows((1, 4) if quick else RECEIVERS, sent)
    if not quick:
        plot_scale(points, fit(points), sent, Path("docs/images/scale.png"))


@dataclass(frozen=True)
class Point:
    """One iteration of the simulated loop."""

    nodes: int
    trajectories: int
    seconds: float
    busy: float
    """CPU seconds of the loop's thread."""
    rollout_busy: float
    """Of them, those while workers roll out: hidden behind them, as long as there are fewer."""
    rollout_s: float
    """Of sampling alone, as the workers' measured latency says."""


@dataclass(frozen=True)
class Fit:
    """Seconds of the driver in an iteration: `base + slope * nodes`, by least squares of the relative error."""

    base: float
    slope: float

    def at(self, nodes: float) -> float:
        return self.base + self.slope * nodes

    def nodes_at(self, seconds: float) -> float:
        return (seconds - self.base) / self.slope


def line_through(nodes: Sequence[float], seconds: Sequence[float]) -> Fit:
    weights = 1 / np.asarray(seconds)
    slope, base = np.polyfit(np.asarray(nodes, float), np.asarray(seconds), 1, w=weights)
    return Fit(float(base), float(slope))


def fit(points: Sequence[Point]) -> Fit:
    return line_through([point.nodes for point in points], [point.busy for point in points])


def loop_rows(nodes: Sequence[int], cluster: SimulatedCluster, points: list[Point]) -> Iterator[Row]:
    """`points` takes in what was measured, node count by node count."""
    from experiments.benchmarks.simulated_loop import SimulatedLoop, expected_seconds

    rolling, learning = expected_seconds(cluster.recorded, cluster.speed)
    for count in nodes:
        loop = SimulatedLoop(count, cluster)
        loop.iterate()  # processes start, pages are touched
        found = loop.iterate()
        points.append(Point(count, found.trajectories, found.seconds, found.busy, found.phases["rollout"][1], rolling))
        name = f"loop, {count} nodes, {found.trajectories:,} trajectories an iteration"
        first = points[0]
        per_first, per_trajectory = first.busy / first.trajectories, found.busy / found.trajectories
        yield Row.of(f"{name}: the driver works", found.busy, "s")
        bar = {} if count == nodes[0] else {"baseline": 1e6 * per_first, "bar": 1.5, "at_most": True}
        yield Row.of(f"{name}: the driver works for one trajectory, to that with 1 node", 1e6 * per_trajectory, "us", **bar)  # type: ignore[arg-type]
        shares = ", ".join(f"{phase} {1e6 * cpu / found.trajectories:,.0f}" for phase, (_, cpu) in found.phases.items())
        yield Row.of(f"{name}: the driver's thread is busy ({shares} us a trajectory)", found.busy / found.seconds, "of 1")
        yield Row.of(f"{name}: seconds, against those of a driver that takes no time", found.seconds, "s", rolling + learning)
    line = fit(points)
    found_by = f"fit {line.base:.3g} s + {1e3 * line.slope:.3g} ms x nodes"
    yield Row.of(
        f"driver: nodes at which it works as long as workers and learners do ({found_by})", line.nodes_at(rolling + learning), "nodes"
    )
    hidden = line_through([point.nodes for point in points], [point.rollout_busy for point in points])
    found_by = f"fit {hidden.base:.3g} s + {1e3 * hidden.slope:.3g} ms x nodes"
    yield Row.of(f"driver: nodes at which taking in lasts as long as sampling ({found_by})", hidden.nodes_at(rolling), "nodes")
    per_s = 1 / (line.slope / (points[0].trajectories / points[0].nodes))
    yield Row.of("driver: trajectories a second, at most", per_s, "trajectories/s")


def byte_rows(cluster: SimulatedCluster) -> Iterator[Row]:
    """As Ray serialises them; counted in an iteration of one node, and proportional to trajectories from there on."""
    from experiments.benchmarks.simulated_loop import QUESTIONS_PER_WORKER, SimulatedLoop, serialized_bytes
    from rollout.episode_run import Worked, WorkReport

    counted: Counter[str] = Counter()
    count = SimulatedLoop(1, cluster, counted).iterate().trajectories
    chunk = list(enumerate([trajectory] for trajectory in cluster.recorded.trajectories[:QUESTIONS_PER_WORKER]))
    up = serialized_bytes(Worked(chunk, 0, WorkReport(1, 0, 0.0))) / QUESTIONS_PER_WORKER
    yield Row.of("bytes: a trajectory, worker to driver", up / 1e3, "kB")
    yield Row.of("bytes: the same, driver to reward actor", counted["score asked"] / count / 1e3, "kB")
    yield Row.of("bytes: its scored turns, reward actor to driver", counted["score answered"] / count / 1e3, "kB")
    yield Row.of("bytes: what of it is learned from, driver to learner ranks", counted["update asked"] / count / 1e3, "kB")
    together = up * count + counted["score asked"] + counted["score answered"] + counted["update asked"]
    yield Row.of("bytes: all of these through the driver, for a trajectory", together / count / 1e3, "kB")


def collector_rows(nodes: int, cluster: SimulatedCluster) -> Iterator[Row]:
    """What it saves the driver that Python's collector searches for cycles after an iteration, not all through it."""
    from experiments.benchmarks.simulated_loop import SimulatedLoop

    loop = SimulatedLoop(nodes, cluster)
    loop.iterate()
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for searching in (True, False, False, True):
        found = loop.iterate(searching)
        seconds[searching].append(1e6 * found.busy / found.trajectories)
    without, searched = (float(np.mean(seconds[searching])) for searching in (False, True))
    name = f"loop, {nodes} nodes: the driver works for one trajectory, against searching for cycles while scores come and learners are fed"
    yield Row.of(name, without, "us", searched, bar=1.0, at_most=True)


def push_rows(receivers: Sequence[int]) -> Iterator[Row]:
    """Calls of the driver that bring one version to many workers, bucket by bucket; the buckets are small, so only the calls cost."""
    import ray

    from experiments.benchmarks.simulated_workers import SimulatedGroup, sleepers
    from learner.rollout_workers import RolloutWorkers
    from rollout.weights import PublishedBucket

    buckets = [PublishedBucket(ray.put(number), (), number, 8) for number in range(PUSHED_BUCKETS)]
    processes = [sleepers(), sleepers()]
    for count in receivers:
        group = SimulatedGroup(count, processes)
        workers = RolloutWorkers(group, chunk=1, deadline_s=300)
        workers.push(1, [])  # processes start
        began, thread = time.perf_counter(), time.thread_time()
        workers.push(2, buckets)
        busy, seconds = time.thread_time() - thread, time.perf_counter() - began
        name = f"weights, {PUSHED_BUCKETS} buckets to {count} workers through the object store"
        yield Row.of(f"{name}: the driver works", busy, "s")
        yield Row.of(f"{name}: for one bucket and worker", 1e6 * busy / count / PUSHED_BUCKETS, "us")
        yield Row.of(f"{name}: until all have answered, bytes not counted", seconds, "s")


def link_rows(receivers: Sequence[int], sent: list[tuple[int, float, float]]) -> Iterator[Row]:
    """One broadcast to nodes whose links have a known speed, against a sender that serves each by itself. `sent` takes in
    (receivers, seconds of the broadcast, seconds one by one)."""
    from experiments.benchmarks.limited_links import broadcast_seconds, limited_nodes, links_can_be_limited

    name = f"weights, {SENT_BYTES / 1e6:.1f} MB over links of {LINK_MBIT_PER_S} Mbit/s"
    if not links_can_be_limited():
        yield Row.of(f"{name}: one broadcast (no root, ip and tc: links cannot be limited)", float("nan"), "s")
        return
    once = 8 * SENT_BYTES / LINK_MBIT_PER_S / 1e6
    for count in receivers:
        with limited_nodes(count + 1, LINK_MBIT_PER_S) as nodes:
            together, one_by_one = broadcast_seconds(nodes, SENT_BYTES)
        sent.append((count, together, one_by_one))
        yield Row.of(f"{name}, to {count} nodes: one broadcast (gloo), against one node after the other", together, "s", one_by_one)
        yield Row.of(
            f"{name}, to {count} nodes: the same, against {tree_times(count)} times the bytes over one link",
            together,
            "s",
            tree_times(count) * once,
        )
