"""Nodes that an autoscaler can start: asked for by what the plan lacks, while a run waits for them (`ray.join_s`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from ray.autoscaler.sdk import request_resources

from experiments.placement import Ask
from experiments.run_asks import on_nodes_with


def bundles_of(asks: Sequence[Ask]) -> list[dict[str, float]]:
    """What each process of a plan reserves, as Ray's autoscaler takes it."""
    bundles = []
    for ask in asks:
        wanted = {"CPU": float(ask.cpus), "GPU": float(ask.gpus), "memory": float(ask.memory), **on_nodes_with(ask.resource)}
        bundles += [{name: amount for name, amount in wanted.items() if amount}] * ask.count
    return bundles


@contextmanager
def growing() -> Iterator[Callable[[Sequence[Ask]], None]]:
    """Yields what asks for room for such processes, each time instead of the last. A cluster without an autoscaler takes no notice.

    The request ends with the block, not with the run: it would outlive a driver that is killed, and keep nodes for nobody. From there on it is the
    processes themselves that keep their nodes.
    """
    asked = False

    def ask_for(asks: Sequence[Ask]) -> None:
        nonlocal asked
        asked = True
        request_resources(bundles=bundles_of(asks))

    try:
        yield ask_for
    finally:
        if asked:
            request_resources(bundles=[])
