"""Rollouts: the generation engine, on this machine's CPU and on a GPU where there is one."""

from __future__ import annotations

from collections.abc import Iterator

from experiments.benchmarks.row import Row


def rollout_rows(quick: bool) -> Iterator[Row]:
    from experiments.benchmarks.engine_speed import engine_rows
    from experiments.benchmarks.engine_speed_gpu import gpu_rows

    yield from engine_rows(quick)
    yield from gpu_rows(quick)
