"""Rankings of passages by vectors, by words and by both, and how many of the passages that are needed they find."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from retrieval_actors.embedders import Embedder, written
from retrieval_actors.fusion import interleaved, reciprocal_rank_fusion
from retrieval_actors.lexical import BM25Index
from retrieval_actors.records import Passage, Query

DEPTH = 100
"""Passages that vectors and words each give to a fusion."""
BLOCK = 1024

Ranking = list[int]
"""Positions of passages, best first."""


@dataclass(frozen=True)
class Rankings:
    """The same queries, ranked in three ways."""

    dense: list[Ranking]
    lexical: list[Ranking]
    hybrid: list[Ranking]
    """Reciprocal rank fusion of the two."""


def rank(embedder: Embedder, passages: Sequence[Passage], queries: Sequence[str], cache: Path) -> Rankings:
    """The best DEPTH passages for each query: exact inner products, BM25 over title and text, and their fusion."""
    vectors = embedded(embedder, passages, cache)
    asked = embedder.embed_queries([Query(query) for query in queries])
    depth = min(DEPTH, len(passages))
    dense = [np.argsort(-(vectors @ query), kind="stable")[:depth].tolist() for query in asked]
    lexical = by_words([written(passage) for passage in passages], queries, depth)
    hybrid = [[position for position, _ in reciprocal_rank_fusion(pair, depth)] for pair in zip(dense, lexical, strict=True)]
    return Rankings(dense, lexical, hybrid)


def by_words(texts: Sequence[str], queries: Sequence[str], depth: int) -> list[Ranking]:
    """BM25; passages without a word of the query are in no ranking."""
    with tempfile.TemporaryDirectory() as folder:
        _, positions = BM25Index.build(texts, folder).search(queries, depth)
    return [[position for position in row if position >= 0] for row in positions.tolist()]


def embedded(embedder: Embedder, passages: Sequence[Passage], cache: Path) -> np.ndarray:
    """(passages, dimension) float32 unit rows. Embedding takes most of the time: each block is kept in `cache` under a hash of embedder
    and texts, so that a run that was interrupted goes on, and the next one only reads."""
    cache.mkdir(parents=True, exist_ok=True)
    blocks = []
    for start in range(0, len(passages), BLOCK):
        block = passages[start : start + BLOCK]
        key = hashlib.sha256(embedder.name.encode())
        for passage in block:
            key.update(f"\n{len(written(passage))} {written(passage)}".encode())
        file = cache / f"{key.hexdigest()[:24]}.npy"
        if not file.is_file():
            aside = file.with_suffix(".new.npy")
            np.save(aside, embedder.embed_passages(block))
            aside.rename(file)
        blocks.append(np.load(file))
    return np.concatenate(blocks) if blocks else np.zeros((0, embedder.dimension), np.float32)


def recall(rankings: Sequence[Sequence[object]], golds: Sequence[set], k: int) -> float:
    """Percent of a question's gold passages among its first k, averaged over questions."""
    return 100 * float(np.mean([len(gold & set(ranking[:k])) / len(gold) for ranking, gold in zip(rankings, golds, strict=True)]))


def round_robin(rankings: Sequence[Ranking], hops: Sequence[int]) -> list[Ranking]:
    """One ranking for each question out of those of its queries: the first of each query, then the second of each, without repeats.

    `hops`: how many queries belong to each question, in order. Recall@k of the result therefore counts k passages for a question, however
    many queries it has: at k = 2 a question of two hops is judged by the one best passage of each.
    """
    merged, start = [], 0
    for count in hops:
        merged.append(interleaved(rankings[start : start + count], DEPTH))
        start += count
    return merged
