"""The memory that knowledge bases will need, computed from the sizes of their files before anything is loaded."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from retrieval_actors.knowledge_base import LEXICAL, KnowledgeBase
from retrieval_actors.records import LEXICAL_SHARD

PROCESS_BYTES = 120 * 2**20  # memory of a shard actor without its files: Python, Ray, FAISS and numpy (measured)


@dataclass(frozen=True)
class ShardNeed:
    kb: str
    shard: int  # number of the shard, or LEXICAL_SHARD
    index: str  # `exact`, the FAISS factory string of the index that proposes candidates, or `BM25`
    passages: int
    searched_bytes: int  # read by every search: the vectors of an exact shard, else its index


@dataclass(frozen=True)
class ActorNeed:
    """A process that searches one shard, or several small ones."""

    shards: tuple[ShardNeed, ...]

    @property
    def resident_bytes(self) -> int:
        """Of one replica; replicas on one node share the memory pages of the files."""
        return sum(shard.searched_bytes for shard in self.shards) + PROCESS_BYTES

    @property
    def label(self) -> str:
        return label_of([(shard.kb, shard.shard) for shard in self.shards])


@dataclass(frozen=True)
class MemoryPlan:
    needs: tuple[ShardNeed, ...]
    actors: tuple[ActorNeed, ...]  # they hold the needs, each in one of them
    replicas: int  # of each actor
    available_bytes: int  # memory that the nodes of the cluster offer; 0: unknown
    largest_node_bytes: int

    @property
    def resident_bytes(self) -> int:
        return sum(actor.resident_bytes for actor in self.actors) * self.replicas

    def refusal(self) -> str:
        """Why this cannot be placed, and what to do; empty if it can."""
        largest = max(self.actors, key=lambda actor: actor.resident_bytes, default=None)
        if self.available_bytes and largest and largest.resident_bytes > self.largest_node_bytes:
            needed = f"an actor ({largest.label}) searches {readable(largest.resident_bytes)}, the largest node offers"
            return f"{needed} {readable(self.largest_node_bytes)}: build it with more shards, or with a smaller index (index=auto)"
        if self.available_bytes and self.resident_bytes > self.available_bytes:
            needed = f"the knowledge bases search {readable(self.resident_bytes)}, the nodes offer {readable(self.available_bytes)}"
            return f"{needed}: add nodes, lower retrieval.replicas, or build them with a smaller index (index=auto)"
        return ""

    def line(self) -> str:
        passages = sum(need.passages for need in self.needs if need.shard != LEXICAL_SHARD)
        offered = f" of {readable(self.available_bytes)}" if self.available_bytes else ""
        shards, actors = len(self.needs), len(self.actors) * self.replicas
        held = f"{shards} shard{'s' * (shards != 1)} in {actors} actor{'s' * (actors != 1)}"
        return f"{passages:,} passages, {held}, {readable(self.resident_bytes)}{offered} to be searched in memory"

    def lines(self) -> Iterator[str]:
        yield self.line()
        for need in self.needs:
            index = "" if need.shard == LEXICAL_SHARD else f", {need.index}"
            yield f"  {label_of([(need.kb, need.shard)])}{index}: {need.passages:,} passages, {readable(need.searched_bytes)} searched"
        yield self.refusal() or "searched: read by every search, so best in memory"


def plan_memory(
    bases: Sequence[KnowledgeBase], replicas: int, nodes: Sequence[int], hybrid: bool = False, shared_mib: float = 0.0
) -> MemoryPlan:
    """`nodes`: bytes of memory that each node offers. `hybrid`: the BM25 indexes, too. `shared_mib`: of small shards in one actor."""
    needs = []
    for base in bases:
        name, sizes = base.card.name, {file: int(recorded["bytes"]) for file, recorded in base.manifest["files"].items()}
        for number, entry in enumerate(base.manifest["shards"]):
            searched = sizes[entry.get("index_file", entry["vectors_file"])]
            needs.append(ShardNeed(name, number, entry.get("index", "exact"), entry["passages"], searched))
        if hybrid:
            searched = sum(size for file, size in sizes.items() if file.startswith(f"{LEXICAL}/"))
            needs.append(ShardNeed(name, LEXICAL_SHARD, "BM25", base.card.passages, searched))
    return MemoryPlan(tuple(needs), tuple(_actors(needs, shared_mib * 2**20)), replicas, sum(nodes), max(nodes, default=0))


def _actors(needs: Sequence[ShardNeed], shared_bytes: float) -> Iterator[ActorNeed]:
    """From the smallest shard up: as many in one actor as search `shared_bytes` together, and one at least."""
    held: list[ShardNeed] = []
    for need in sorted(needs, key=lambda need: need.searched_bytes):
        if held and sum(shard.searched_bytes for shard in (*held, need)) > shared_bytes:
            yield ActorNeed(tuple(held))
            held = []
        held.append(need)
    if held:
        yield ActorNeed(tuple(held))


def label_of(shards: Iterable[tuple[str, int]]) -> str:
    """(Knowledge base, number of its shard) in words: `text, shard 0; table, shard 0`."""
    return "; ".join(f"{kb}, {'BM25' if number == LEXICAL_SHARD else f'shard {number}'}" for kb, number in shards)


def readable(size: float) -> str:
    """Bytes as MiB or GiB."""
    return f"{size / 2**30:,.1f} GiB" if size >= 2**30 else f"{size / 2**20:,.1f} MiB"
