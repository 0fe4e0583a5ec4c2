"""Embedders that share a model, in a process of their own: every query is embedded once, whoever asks."""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict

import numpy as np

from retrieval_actors.embedders import Embedder, build_embedder
from retrieval_actors.records import Query


class CachedQueries:
    """Embeds queries through a bounded memory of earlier ones, the least recently used forgotten first."""

    def __init__(self, embedder: Embedder, size: int):
        self._embedder = embedder
        self._size = size
        self._vectors: OrderedDict[tuple[str, bytes], np.ndarray] = OrderedDict()
        self.hits = 0
        self.misses = 0

    def embed(self, queries: list[Query]) -> np.ndarray:
        """(queries, dimension) float32 unit rows. A query that occurs twice in a batch is embedded once, which counts as a hit."""
        keys = [(query.text, hashlib.sha256(query.image).digest() if query.image else b"") for query in queries]
        found = {key: self._vectors[key] for key in keys if key in self._vectors}
        missing = {key: query for key, query in zip(keys, queries, strict=True) if key not in found}
        self.hits += len(keys) - len(missing)
        self.misses += len(missing)
        if missing:
            found |= zip(missing, self._embedder.embed_queries(list(missing.values())), strict=True)
        for key in keys:
            # A copy: a row of a batch would keep the whole batch alive.
            self._vectors[key] = found[key] if key in self._vectors else found[key].copy()
            self._vectors.move_to_end(key)
        while len(self._vectors) > self._size:
            self._vectors.popitem(last=False)
        return np.stack([found[key] for key in keys]) if keys else np.zeros((0, self._embedder.dimension), np.float32)


class EmbedderActor:
    def __init__(self, names: list[str], cache_size: int, threads: int):
        """`cache_size`: query embeddings that each of them remembers."""
        self._embedders = {name: build_embedder(name, threads) for name in names}
        self._queries = {name: CachedQueries(embedder, cache_size) for name, embedder in self._embedders.items()}

    def ready(self) -> int:
        """Its process id, once the model is loaded."""
        return os.getpid()

    def dimension(self, name: str) -> int:
        return self._embedders[name].dimension

    def embed_queries(self, name: str, queries: list[Query]) -> np.ndarray:
        return self._queries[name].embed(queries)

    def cache_counts(self) -> tuple[int, int]:
        """(hits, misses) since the actor was started."""
        return sum(cached.hits for cached in self._queries.values()), sum(cached.misses for cached in self._queries.values())
