"""Rollouts: the generation engine, on this machine's CPU and on a GPU where there is one; whole episodes, many workers, learning meanwhile."""

from __future__ import annotations

from collections.abc import Iterator

from experiments.benchmarks.row import Row


def rollout_rows(quick: bool) -> Iterator[Row]:
    from experiments.benchmarks.engine_speed import engine_rows
    from experiments.benchmarks.engine_speed_gpu import gpu_rows
    from experiments.benchmarks.pipeline import pipeline_rows

    yield from engine_rows(quick)
    yield from gpu_rows(quick)
    yield from pipeline_rows(quick)
