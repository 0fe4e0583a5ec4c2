"""From what the shards of a knowledge base found to the passages of each query."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from retrieval_actors.exact_search import merge_top_k
from retrieval_actors.fusion import reciprocal_rank_fusion
from retrieval_actors.records import Passage
from retrieval_actors.shard_actor import ShardHits

Ranking = list[tuple[int, float]]
"""(position in the knowledge base, score), best first."""


def by_vectors(shards: Sequence[ShardHits], k: int) -> list[Ranking]:
    """The k best of all shards for each query."""
    scores, positions = merge_top_k([(found.scores, found.positions) for found in shards], k)
    rows = zip(positions.tolist(), scores.tolist(), strict=True)
    return [[(position, score) for position, score in zip(*row, strict=True) if position >= 0] for row in rows]


def fused(rankings: Sequence[Ranking], words: ShardHits, k: int) -> list[Ranking]:
    """The k best of each query's ranking and its ranking by words, by reciprocal rank."""
    pairs = zip(rankings, words.positions.tolist(), strict=True)
    return [reciprocal_rank_fusion([[position for position, _ in ranking], by_words], k) for ranking, by_words in pairs]


def with_passages(rankings: Sequence[Ranking], sources: Iterable[ShardHits], kb: str) -> list[list[Passage]]:
    """The rankings with what stands there; `sources` bring the passages of all positions."""
    known: dict[int, tuple[str, str, str, bytes | None]] = {}
    for found in sources:
        columns = found.passages
        pictures = columns.get("image") or [None] * len(found.found)
        entries = zip(columns["id"], columns["text"], columns["title"], pictures, strict=True)  # as the fields of a Passage stand
        known |= zip(found.found.tolist(), entries, strict=True)
    return [[Passage(*known[position], kb, score) for position, score in ranking] for ranking in rankings]
