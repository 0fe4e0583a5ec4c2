"""The plan of a run on the cluster that it is connected to: printed before anything starts, or refused at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import ray
from rich.console import Console, Group, RenderableType
from rich.table import Table

from experiments.config import RunConfigError, TrainConfig
from experiments.datasets import Dataset, KnowledgeBaseSource
from experiments.growth import growing
from experiments.placement import Ask, Node, Plan, place
from experiments.run_asks import RoleResources, asks_of, with_roles
from retrieval_actors.memory_plan import readable

BUILT_IN = ("CPU", "GPU", "memory", "object_store_memory", "accelerator_type:", "node:")
POLL_S = 1.0
Processes = Callable[[TrainConfig, RoleResources, Sequence[Sequence[KnowledgeBaseSource]]], list[Ask]]
"""`asks_of`, or that part of it which a command starts."""
MOST_ROWS = 12
"""Nodes, or shards, that are listed one by one."""


def cluster_nodes() -> list[Node]:
    """What is free on each node of the cluster that this process is connected to."""
    from ray._private.state import available_resources_per_node

    free = available_resources_per_node()
    found = []
    for node in ray.nodes():
        if node["Alive"]:
            left = free.get(node["NodeID"], node["Resources"])
            custom = frozenset(name for name in node["Resources"] if not name.startswith(BUILT_IN))
            found.append(Node(_name(node), left.get("CPU", 0.0), left.get("GPU", 0.0), int(left.get("memory", 0)), resources=custom))
    return sorted(found, key=lambda node: node.name)


def knowledge_bases_of(dataset: Dataset | None) -> list[Sequence[KnowledgeBaseSource]]:
    """Those of training, and those of evaluation where they are others."""
    if dataset is None:
        return []
    folders = [[source.folder for source in sources] for sources in (dataset.training_kbs, dataset.evaluation_kbs)]
    return [dataset.training_kbs, *([dataset.evaluation_kbs] if folders[1] != folders[0] else [])]


def placed_or_refused(
    config: TrainConfig, dataset: Dataset | None, console: Console, processes: Processes = asks_of
) -> tuple[TrainConfig, RoleResources]:
    """Prints who runs where; returns the configuration with the nodes of learners and retrieval said, and the nodes of every role.

    Raises RunConfigError at once (after `ray.join_s` seconds, in which an autoscaler is asked for nodes) for what no node has room for, with the
    mend. `processes`: whose places are looked for.
    """
    end = time.monotonic() + config.ray.join_s
    with growing() as grow:
        while True:
            nodes = cluster_nodes()
            roles = RoleResources.of(config, {name for node in nodes for name in node.resources})
            asks = processes(config, roles, knowledge_bases_of(dataset))
            plan = place(asks, [_copy(node) for node in nodes])
            if not plan.refusal or time.monotonic() >= end:
                break
            grow(asks)
            left = f"waiting for nodes, {end - time.monotonic():.0f} s left: {plan.refusal}"
            console.print(left, style="dim", soft_wrap=True, markup=False)
            time.sleep(min(10 * POLL_S, max(0.0, end - time.monotonic())))
    if plan.refusal:
        raise RunConfigError(plan.refusal)
    console.print(plan_table(plan, nodes), highlight=False)
    return with_roles(config, roles), roles


def plan_table(plan: Plan, nodes: Sequence[Node]) -> RenderableType:
    """Who runs where, and what each node is left with."""
    roles = Table(title="who runs where", box=None, padding=(0, 2, 0, 0), title_justify="left")
    for name in ("role", "processes", "CPUs", "GPUs", "memory", "nodes"):
        text = name in ("role", "nodes")
        roles.add_column(name, justify="left" if text else "right", no_wrap=not text)
    for placed in plan.placed:
        ask = placed.ask
        where = ", ".join(f"{node} x {count}" if count > 1 else node for node, count in sorted(placed.nodes.items())[:MOST_ROWS])
        where += f" and {len(placed.nodes) - MOST_ROWS} more" if len(placed.nodes) > MOST_ROWS else ""
        total = readable(ask.memory * ask.count) if ask.memory else ""
        roles.add_row(ask.label, str(ask.count), f"{ask.cpus * ask.count:g}", f"{ask.gpus * ask.count:g}", total, where)
    each = Table(title="what each node gives", box=None, padding=(0, 2, 0, 0), title_justify="left")
    for name in ("node", "CPUs", "GPUs", "memory", "shards"):
        each.add_column(name, justify="left" if name in ("node", "shards") else "right")
    for node in nodes[:MOST_ROWS]:
        here = plan.on(node.name)
        cpus, gpus, memory = (sum(getattr(ask, what) * n for ask, n in here) for what in ("cpus", "gpus", "memory"))
        shards = sum(n for ask, n in here if ask.role == "shard")
        bound = f" of {readable(node.memory)}" if node.memory else ""
        each.add_row(node.name, f"{cpus:g} of {node.cpus:g}", f"{gpus:g} of {node.gpus:g}", f"{readable(int(memory))}{bound}", str(shards))
    if len(nodes) > MOST_ROWS:
        each.add_row(f"and {len(nodes) - MOST_ROWS} more", "", "", "", "")
    return Group(roles, each)


def _name(node: dict) -> str:
    """Address, and the beginning of the id where several nodes share a machine."""
    return f"{node['NodeManagerAddress']} {node['NodeID'][:6]}"


def _copy(node: Node) -> Node:
    return Node(node.name, node.cpus, node.gpus, node.memory, node.resources)
