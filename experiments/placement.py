"""Who runs where, worked out before anything starts: what a run asks for, laid onto the nodes as Ray would lay it. Pure.

Ray waits without a word for CPUs, GPUs or memory that no node has. Here the same request is placed on paper first, in the order in which the
processes are started: a process that uses a part of a GPU goes to the fullest GPU with room for it (Ray does so, too), one that needs memory to the
node with most of it, any other to the node with most free CPUs, nodes without GPUs first. Learners, whose room is reserved at once, stay together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from retrieval_actors.memory_plan import readable, roomiest

EPSILON = 1e-6


@dataclass(frozen=True)
class Ask:
    """A number of processes of one kind."""

    role: str
    """`learner`, `rollout`, `evaluation`, `embedder`, `shard`, `rewards`, ..."""
    count: int
    cpus: float
    gpus: float = 0.0
    """Of one process: 0, 1, or a share of one GPU."""
    memory: int = 0
    """Bytes that one process reserves."""
    resource: str = ""
    """Custom resource of the nodes that it may run on; empty: any."""
    setting: str = ""
    """The keys that make it ask for less."""
    together: bool = False
    """On as few nodes as possible."""
    detail: str = ""
    """What tells these processes from others of the role: `text, shard 0`."""

    @property
    def label(self) -> str:
        return f"{self.role} ({self.detail})" if self.detail else self.role

    def wants(self) -> str:
        """What one process asks for, in words."""
        parts = [f"{self.cpus:g} CPU", *([f"{self.gpus:g} GPU"] if self.gpus else []), *([readable(self.memory)] if self.memory else [])]
        return ", ".join(parts) + (f" on a node with the resource {self.resource!r}" if self.resource else "")


@dataclass
class Node:
    """What is free on a node; `place` takes from it."""

    name: str
    cpus: float
    gpus: float = 0.0
    memory: int = 0
    """Bytes; 0: it does not say, so no bound."""
    resources: frozenset[str] = frozenset()
    """Names of its custom resources."""
    shares: list[float] = field(init=False)
    """What is free of each GPU."""
    occupants: list[list[Ask]] = field(init=False)
    """Who was put on each GPU: once for each process."""

    def __post_init__(self) -> None:
        whole = int(self.gpus + EPSILON)
        rest = self.gpus - whole
        self.shares = [1.0] * whole + ([rest] if rest > EPSILON else [])
        self.occupants = [[] for _ in self.shares]
        self._bounded = self.memory > 0

    def takes(self, ask: Ask) -> bool:
        return (
            (not ask.resource or ask.resource in self.resources)
            and self.cpus + EPSILON >= ask.cpus
            and (not ask.gpus or any(share + EPSILON >= ask.gpus for share in self.shares))
            and (not self._bounded or self.memory >= ask.memory)
        )

    def take(self, ask: Ask) -> None:
        self.cpus -= ask.cpus
        self.memory -= ask.memory if self._bounded else 0
        if ask.gpus:
            fullest = min((share, i) for i, share in enumerate(self.shares) if share + EPSILON >= ask.gpus)[1]
            self.shares[fullest] -= ask.gpus
            self.occupants[fullest].append(ask)

    def offers(self) -> str:
        """For messages."""
        said = f"{self.name}: {self.cpus:g} CPU, {sum(self.shares):g} GPU"
        return said + (f", {readable(self.memory)}" if self._bounded else "")


@dataclass(frozen=True)
class Placed:
    ask: Ask
    nodes: Counter[str]
    """Node -> processes there."""


@dataclass(frozen=True)
class Plan:
    placed: tuple[Placed, ...]
    refusal: str = ""
    """Why not all of it finds a place, and what to do; empty: it does."""

    def on(self, node: str) -> list[tuple[Ask, int]]:
        """What runs on a node."""
        return [(placed.ask, placed.nodes[node]) for placed in self.placed if placed.nodes[node]]


def place(asks: Sequence[Ask], nodes: Iterable[Node]) -> Plan:
    """The nodes are used up. What finds no place is named with what was asked for, what is there, and which settings to change."""
    nodes = list(nodes)
    placed: list[Placed] = []
    for ask in asks:
        found: Counter[str] = Counter()
        for done in range(ask.count):
            node = _node_for(ask, nodes, found)
            if node is None:
                return Plan(tuple(placed), _refusal(ask, done, nodes))
            node.take(ask)
            found[node.name] += 1
        placed.append(Placed(ask, found))
    return Plan(tuple(placed))


def _node_for(ask: Ask, nodes: Sequence[Node], taken: Counter[str]) -> Node | None:
    fitting = [node for node in nodes if node.takes(ask)]
    if not fitting:
        return None
    if ask.together and any(taken[node.name] for node in fitting):
        fitting = [node for node in fitting if taken[node.name]]
    if ask.gpus:
        return min(fitting, key=lambda node: min(share for share in node.shares if share + EPSILON >= ask.gpus))
    if ask.memory:
        best = roomiest({node.name: node.memory for node in fitting}, taken)
        return next(node for node in fitting if node.name == best)
    return max(fitting, key=lambda node: (not node.gpus, node.cpus))


def _refusal(ask: Ask, done: int, nodes: Sequence[Node]) -> str:
    named = [node for node in nodes if not ask.resource or ask.resource in node.resources]
    if not named:
        there = ", ".join(sorted({name for node in nodes for name in node.resources})) or "none"
        lacking = f"no node has the resource {ask.resource!r} (found {there})"
    else:
        shown = "; ".join(node.offers() for node in named[:8]) + ("; ..." if len(named) > 8 else "")
        lacking = f"left on {len(named)} {'node' if len(named) == 1 else 'nodes'}, {_scarce(ask, named)}: {shown}"
    mend = f"lower {ask.setting}, or add nodes" if ask.setting else "add nodes"
    return (
        f"{ask.count - done} of {ask.count} {ask.label} find no place: one asks for {ask.wants()}; {lacking}. Mend: {mend} (ray.join_s=600 waits "
        "for nodes that are still joining)"
    )


def _scarce(ask: Ask, nodes: Sequence[Node]) -> str:
    if not any(node.cpus + EPSILON >= ask.cpus for node in nodes):
        return "none with enough CPUs"
    if ask.gpus and not any(share + EPSILON >= ask.gpus for node in nodes for share in node.shares):
        return "none with enough of a GPU"
    if ask.memory and not any(node.memory >= ask.memory for node in nodes):
        return "none with enough memory"
    return "none with all of it"
