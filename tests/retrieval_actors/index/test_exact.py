"""Exact search: the cut into shards and batches is invisible in the answer."""

from __future__ import annotations

import itertools

import faiss
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval_actors.index.exact import exact_top_k, merge_top_k


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def sharded_top_k(vectors: np.ndarray, queries: np.ndarray, k: int, bounds: list[int]) -> tuple[np.ndarray, np.ndarray]:
    parts = []
    for first, last in itertools.pairwise(bounds):
        scores, rows = exact_top_k(vectors[first:last], queries, k)
        parts.append((scores, rows + first))
    return merge_top_k(parts, k)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), seed=st.integers(0, 2**32 - 1), k=st.integers(1, 12))
def test_merged_shards_return_the_same_top_k_as_one_index(data, seed, k):
    random = np.random.default_rng(seed)
    distinct = unit(random.normal(size=(20, 24)))
    vectors = distinct[random.integers(0, 20, size=60)]  # many exact duplicates: ties everywhere
    queries = unit(random.normal(size=(5, 24)))
    cuts = sorted(data.draw(st.lists(st.integers(0, 60), max_size=4)))
    one = exact_top_k(vectors, queries, k)
    many = sharded_top_k(vectors, queries, k, [0, *cuts, 60])
    np.testing.assert_array_equal(one[1], many[1])
    np.testing.assert_array_equal(one[0], many[0])


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_a_query_gets_the_same_bits_alone_and_in_any_batch(seed):
    random = np.random.default_rng(seed)
    vectors, queries = unit(random.normal(size=(300, 32))), unit(random.normal(size=(40, 32)))
    scores, positions = exact_top_k(vectors, queries, 5)
    for row in (0, 17, 39):
        alone = exact_top_k(vectors, queries[row : row + 1], 5)
        np.testing.assert_array_equal(alone[0][0], scores[row])
        np.testing.assert_array_equal(alone[1][0], positions[row])


def test_scores_and_neighbours_are_those_of_faiss():
    random = np.random.default_rng(0)
    vectors, queries = unit(random.normal(size=(7000, 64))), unit(random.normal(size=(300, 64)))
    scores, positions = exact_top_k(vectors, queries, 10)
    index = faiss.IndexFlatIP(64)
    index.add(vectors)
    expected_scores, expected_positions = index.search(queries, 10)
    np.testing.assert_array_equal(positions, expected_positions)
    np.testing.assert_allclose(scores, expected_scores, atol=1e-6)


def test_ties_go_to_the_earlier_passage_even_when_everything_is_equal():
    vectors = unit(np.ones((500, 16)))
    scores, positions = exact_top_k(vectors, vectors[:2], 4)
    np.testing.assert_array_equal(positions, [[0, 1, 2, 3]] * 2)
    np.testing.assert_allclose(scores, 1, atol=1e-6)


def test_k_larger_than_the_index_an_empty_index_and_no_queries_are_legal():
    vectors = unit(np.random.default_rng(0).normal(size=(3, 8)))
    assert exact_top_k(vectors, vectors, 10)[1].shape == (3, 3)
    assert exact_top_k(vectors[:0], vectors, 10)[1].shape == (3, 0)
    assert exact_top_k(vectors, vectors[:0], 2)[1].shape == (0, 2)


def test_smaller_blocks_do_not_change_the_answer(monkeypatch):
    random = np.random.default_rng(1)
    centre = unit(random.normal(size=(1, 16)))
    vectors = unit(centre + 1e-4 * random.normal(size=(9000, 16)))  # neighbours within the rounding of single precision
    queries = unit(random.normal(size=(20, 16)))
    expected = exact_top_k(vectors, queries, 7)
    wide = exact_top_k(vectors, queries, 5000)
    monkeypatch.setattr("retrieval_actors.index.exact.BLOCK", 50)
    for k, (scores, rows) in ((7, expected), (5000, wide)):
        found = exact_top_k(vectors, queries, k)
        np.testing.assert_array_equal(found[1], rows)
        np.testing.assert_array_equal(found[0], scores)
    in_double = np.argsort(-(queries.astype(np.float64) @ vectors.T.astype(np.float64)).astype(np.float32), axis=1, kind="stable")
    np.testing.assert_array_equal(expected[1], in_double[:, :7])
