"""The query cache of an embedder: vectors of the most recent queries."""

import hashlib
from collections import OrderedDict

import numpy as np

from retrieval_actors.embedders.embedder import Embedder
from retrieval_actors.records import Query


class QueryCache:
    """Embeds queries, and keeps the vectors of the last `size`; the least recently used is dropped first."""

    def __init__(self, embedder: Embedder, size: int = 65536):
        self.embedder, self._size = embedder, size
        self._vectors: OrderedDict[tuple[str, bytes], np.ndarray] = OrderedDict()
        self.hits = self.misses = 0

    def embed(self, queries: list[Query]) -> np.ndarray:
        """(queries, dimension) float32 unit rows. A query that occurs twice in a batch counts as a hit."""
        keys = [(query.text, hashlib.sha256(query.image).digest() if query.image else b"") for query in queries]
        found = {key: self._vectors[key] for key in keys if key in self._vectors}
        missing = {key: query for key, query in zip(keys, queries, strict=True) if key not in found}
        self.hits += len(keys) - len(missing)
        self.misses += len(missing)
        if missing:
            found |= zip(missing, self.embedder.embed_queries(list(missing.values())), strict=True)
        for key in keys:
            # A copy: a row of a batch would keep the whole batch in memory.
            self._vectors[key] = found[key] if key in self._vectors else found[key].copy()
            self._vectors.move_to_end(key)
        while len(self._vectors) > self._size:
            self._vectors.popitem(last=False)
        return np.stack([found[key] for key in keys]) if keys else np.zeros((0, self.embedder.dimension), np.float32)
