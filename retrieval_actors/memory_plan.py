"""What a set of knowledge bases will need, said before anything is loaded."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from retrieval_actors.knowledge_base import LEXICAL, KnowledgeBase

PROCESS_BYTES = 120 * 2**20
"""Of a shard actor beside its files: Python, Ray, FAISS and numpy (measured)."""


@dataclass(frozen=True)
class ShardNeed:
    kb: str
    shard: int
    index: str
    """`exact`, or the FAISS factory string of the index that proposes candidates."""
    passages: int
    searched_bytes: int
    """Read by every search, so best in memory: the vectors of an exact shard, the index of an approximate one."""
    mapped_bytes: int
    """Read here and there, as far as there is memory: passages, and the vectors that candidates are scored by."""
    replicas: int

    @property
    def resident_bytes(self) -> int:
        """Of one replica alone on its node; those on one node share the pages of the files."""
        return self.searched_bytes + PROCESS_BYTES


@dataclass(frozen=True)
class MemoryPlan:
    needs: tuple[ShardNeed, ...]
    available_bytes: int
    """Memory that the nodes of the cluster offer; 0 where they do not say."""
    largest_node_bytes: int

    @property
    def resident_bytes(self) -> int:
        return sum(need.resident_bytes * need.replicas for need in self.needs)

    def refusal(self) -> str:
        """Why this can not be placed, and what to do; empty where it can."""
        if not self.available_bytes:
            return ""
        largest = max(self.needs, key=lambda need: need.resident_bytes, default=None)
        if largest and largest.resident_bytes > self.largest_node_bytes:
            return (
                f"shard {largest.shard} of {largest.kb} searches {readable(largest.resident_bytes)}, the largest node offers "
                f"{readable(self.largest_node_bytes)}: build it with more shards, or with a smaller index (index=auto)"
            )
        if self.resident_bytes > self.available_bytes:
            return (
                f"the knowledge bases search {readable(self.resident_bytes)}, the nodes offer {readable(self.available_bytes)}: "
                "add nodes, lower retrieval.replicas, or build them with a smaller index (index=auto)"
            )
        return ""

    def line(self) -> str:
        """The plan in one line."""
        shards = sum(need.replicas for need in self.needs)
        passages = sum(need.passages for need in self.needs if need.index != "BM25")
        offered = f" of {readable(self.available_bytes)}" if self.available_bytes else ""
        return f"{passages:,} passages in {shards} shard actors, {readable(self.resident_bytes)}{offered} to be searched in memory"


def plan_memory(bases: Sequence[KnowledgeBase], replicas: int, nodes: Sequence[int], hybrid: bool = False) -> MemoryPlan:
    """From the sizes of the files; nothing is read. `nodes`: bytes of memory that each node offers. `hybrid`: words are searched as well."""
    needs = []
    for base in bases:
        sizes = {name: int(recorded["bytes"]) for name, recorded in base.manifest["files"].items()}
        for number, entry in enumerate(base.manifest["shards"]):
            vectors, passages = sizes[entry["vectors_file"]], sizes[entry["passages_file"]]
            proposing = sizes[entry["index_file"]] if "index_file" in entry else 0
            searched, mapped = (proposing, vectors + passages) if proposing else (vectors, passages)
            needs.append(ShardNeed(base.card.name, number, entry.get("index", "exact"), entry["passages"], searched, mapped, replicas))
        if hybrid:
            words = sum(size for name, size in sizes.items() if name.startswith(f"{LEXICAL}/"))
            passages = sum(sizes[entry["passages_file"]] for entry in base.manifest["shards"])
            needs.append(ShardNeed(words_of(base.card.name), 0, "BM25", base.card.passages, words, passages, replicas=1))
    return MemoryPlan(tuple(needs), sum(nodes), max(nodes, default=0))


def spread(needs: Sequence[ShardNeed], nodes: Mapping[str, int]) -> dict[tuple[str, int], list[str]]:
    """(knowledge base, shard) -> node of each replica: the largest first, each to the node with most memory left, and the replicas of a shard to
    different nodes where there are several. `nodes`: node -> bytes that it offers."""
    left, found = dict(nodes), {}
    for need in sorted(needs, key=lambda need: -need.resident_bytes):
        places: list[str] = []
        for _ in range(need.replicas if left else 0):
            places.append(roomiest(left, places))
            left[places[-1]] -= need.resident_bytes
        found[need.kb, need.shard] = places
    return found


def roomiest(left: Mapping[str, int], taken: Collection[str]) -> str:
    """The node with most memory left, one that is not taken where there is one; of equals the first by name."""
    return max(sorted(left), key=lambda node: (node not in taken, left[node]))


def words_of(kb: str) -> str:
    """What the plan calls the words of a knowledge base."""
    return f"{kb}, words"


def readable(size: float) -> str:
    """Bytes for people."""
    return f"{size / 2**30:,.1f} GiB" if size >= 2**30 else f"{size / 2**20:,.1f} MiB"
