"""One shard of a knowledge base in a process of its own."""

from __future__ import annotations

import os
from dataclasses import dataclass

import faiss
import numpy as np

from retrieval_actors.knowledge_base import KnowledgeBase
from retrieval_actors.records import Passage


@dataclass(frozen=True)
class ShardHits:
    """What one shard found for a batch of queries."""

    scores: np.ndarray
    """(queries, k) float32, descending."""
    positions: np.ndarray
    """(queries, k) int64, in the whole knowledge base."""
    passages: dict[int, Passage]
    """Every passage in `positions` once, without its picture: many queries of a batch find the same."""


class ShardActor:
    def __init__(self, folder: str, number: int, threads: int):
        faiss.omp_set_num_threads(threads)
        # Checksums were verified where the retrieval was started: a restart is not slowed down by hashing.
        self._shard = KnowledgeBase.open(folder, verify=False).shard(number)

    def ready(self) -> int:
        """Its process id, once it is loaded."""
        return os.getpid()

    def search(self, vectors: np.ndarray, k: int) -> ShardHits:
        scores, rows = self._shard.search(vectors, k)
        first = self._shard.first
        return ShardHits(scores, rows + first, {int(row) + first: self._shard.passage(int(row)) for row in np.unique(rows)})
