"""The memory that knowledge bases will need, computed from the sizes of their files before anything is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from retrieval_actors.knowledge_base import LEXICAL, KnowledgeBase

PROCESS_BYTES = 120 * 2**20  # memory of a shard actor without its files: Python, Ray, FAISS and numpy (measured)
LEXICAL_SHARD = -1  # number of the BM25 index over all shards


@dataclass(frozen=True)
class ShardNeed:
    kb: str
    shard: int  # number of the shard, or LEXICAL_SHARD
    index: str  # `exact`, the FAISS factory string of the index that proposes candidates, or `BM25`
    passages: int
    searched_bytes: int  # read by every search: the vectors of an exact shard, else its index
    replicas: int

    @property
    def resident_bytes(self) -> int:
        """Of one replica; replicas on one node share the memory pages of the files."""
        return self.searched_bytes + PROCESS_BYTES


@dataclass(frozen=True)
class MemoryPlan:
    needs: tuple[ShardNeed, ...]
    available_bytes: int  # memory that the nodes of the cluster offer; 0: unknown
    largest_node_bytes: int

    @property
    def resident_bytes(self) -> int:
        return sum(need.resident_bytes * need.replicas for need in self.needs)

    def refusal(self) -> str:
        """Why this cannot be placed, and what to do; empty if it can."""
        largest = max(self.needs, key=lambda need: need.resident_bytes, default=None)
        if self.available_bytes and largest and largest.resident_bytes > self.largest_node_bytes:
            needed = f"shard {largest.shard} of {largest.kb} searches {readable(largest.resident_bytes)}, the largest node offers"
            return f"{needed} {readable(self.largest_node_bytes)}: build it with more shards, or with a smaller index (index=auto)"
        if self.available_bytes and self.resident_bytes > self.available_bytes:
            needed = f"the knowledge bases search {readable(self.resident_bytes)}, the nodes offer {readable(self.available_bytes)}"
            return f"{needed}: add nodes, lower retrieval.replicas, or build them with a smaller index (index=auto)"
        return ""

    def line(self) -> str:
        shards = sum(need.replicas for need in self.needs)
        passages = sum(need.passages for need in self.needs if need.shard != LEXICAL_SHARD)
        offered = f" of {readable(self.available_bytes)}" if self.available_bytes else ""
        return f"{passages:,} passages in {shards} shard actors, {readable(self.resident_bytes)}{offered} to be searched in memory"

    def lines(self) -> Iterator[str]:
        yield self.line()
        for need in self.needs:
            shard = "all shards" if need.shard == LEXICAL_SHARD else f"shard {need.shard}"
            yield f"  {need.kb}, {shard}, {need.index}: {need.passages:,} passages, {readable(need.searched_bytes)} searched"
        yield self.refusal() or "searched: read by every search, so best in memory"


def plan_memory(bases: Sequence[KnowledgeBase], replicas: int, nodes: Sequence[int], hybrid: bool = False) -> MemoryPlan:
    """`nodes`: bytes of memory that each node offers. `hybrid`: count the BM25 indexes, too."""
    needs = []
    for base in bases:
        name, sizes = base.card.name, {file: int(recorded["bytes"]) for file, recorded in base.manifest["files"].items()}
        for number, entry in enumerate(base.manifest["shards"]):
            searched = sizes[entry.get("index_file", entry["vectors_file"])]
            needs.append(ShardNeed(name, number, entry.get("index", "exact"), entry["passages"], searched, replicas))
        if hybrid:
            searched = sum(size for file, size in sizes.items() if file.startswith(f"{LEXICAL}/"))
            needs.append(ShardNeed(name, LEXICAL_SHARD, "BM25", base.card.passages, searched, replicas=1))
    return MemoryPlan(tuple(needs), sum(nodes), max(nodes, default=0))


def readable(size: float) -> str:
    """Bytes as MiB or GiB."""
    return f"{size / 2**30:,.1f} GiB" if size >= 2**30 else f"{size / 2**20:,.1f} MiB"
