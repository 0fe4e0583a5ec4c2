"""The query cache: bounded, least recently used out first."""

from __future__ import annotations

import numpy as np

from retrieval_actors.actors.query_cache import QueryCache
from retrieval_actors.embedders.registry import build_embedder
from retrieval_actors.records import Query


def test_the_cache_is_bounded_and_counts_its_hits():
    cached = QueryCache(build_embedder("minilm", threads=1), size=2)
    first = cached.embed([Query("a"), Query("b"), Query("a")])
    assert (cached.hits, cached.misses) == (1, 2)
    np.testing.assert_array_equal(first[0], first[2])
    np.testing.assert_array_equal(cached.embed([Query("a")])[0], first[0])
    assert (cached.hits, cached.misses) == (2, 2)
    cached.embed([Query("c")])  # "b" was used least recently
    cached.embed([Query("a")])
    assert (cached.hits, cached.misses) == (3, 3)
    cached.embed([Query("b")])
    assert (cached.hits, cached.misses) == (3, 4)
    assert cached.embed([]).shape == (0, 384)
