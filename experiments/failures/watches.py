"""A watch on every node of a run: in this process for its own node, a small actor on each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from experiments.failures.node_watch import LastSeen, NodeWatch

PATIENCE_S = 5.0
"""For what a watch on another node knows."""


class Watches:
    def __init__(self) -> None:
        self._by_node: dict[str, Any] = {}

    def watch(self, node: str, pids: Sequence[int]) -> None:
        """Look at these processes of the node from now on."""
        if node not in self._by_node:
            if node == ray.get_runtime_context().get_node_id():
                self._by_node[node] = NodeWatch()
            else:
                here = NodeAffinitySchedulingStrategy(node, soft=False)
                self._by_node[node] = ray.remote(num_cpus=0, scheduling_strategy=here)(NodeWatch).remote()
        watch = self._by_node[node]
        if isinstance(watch, NodeWatch):
            watch.watch(pids)
        else:
            watch.watch.remote(list(pids))

    def last_seen(self, node: str, pid: int) -> LastSeen:
        """Nothing, where the watch is gone with its node."""
        watch = self._by_node.get(node)
        if watch is None:
            return LastSeen()
        if isinstance(watch, NodeWatch):
            return watch.last_seen(pid)
        try:
            return ray.get(watch.last_seen.remote(pid), timeout=PATIENCE_S)
        except RayError:  # the node is gone, or busy
            return LastSeen()

    def drop(self, node: str) -> None:
        self._by_node.pop(node, None)

    def close(self) -> None:
        for watch in self._by_node.values():
            if isinstance(watch, NodeWatch):
                watch.close()
            else:
                ray.kill(watch)
        self._by_node = {}
