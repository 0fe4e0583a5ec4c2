"""The top k of a flat index, exactly: the answer depends on the vectors only, not on how they were cut into shards or batches."""

from __future__ import annotations

import faiss
import numpy as np

SPARE = 8
"""Candidates beyond k that are taken from FAISS at first."""
ROWS_AT_ONCE = 1 << 22
"""Bound on candidate numbers (queries * candidates * dimension) that are compared again side by side."""


def exact_top_k(index: faiss.IndexFlat, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """(queries, k) float32 scores, descending, and (queries, k) int64 positions, of unit queries over an index of unit vectors.

    FAISS adds in single precision and in an order that depends on the batch, so equal passages may come back in any order and a near tie
    at rank k either way. Its answer is therefore taken as candidates, with as many spare ones as its rounding error asks for; these are
    compared again in double precision, and ties go to the earlier position. `k` larger than the index returns all of it.
    """
    k = min(k, index.ntotal)
    scores = np.zeros((len(queries), k), np.float32)
    positions = np.zeros((len(queries), k), np.int64)
    stored = faiss.rev_swig_ptr(index.get_xb(), index.ntotal * index.d).reshape(index.ntotal, index.d)
    slack = 2 * index.d * 2.0**-24 + 2.0**-22  # twice the error bound of a float32 sum of `d` products of unit vectors
    pending = np.arange(len(queries))
    taken = min(index.ntotal, k + SPARE)
    while len(pending) and k:
        rough, candidates = index.search(np.ascontiguousarray(queries[pending], np.float32), taken)
        settled = (rough[:, -1] < rough[:, k - 1] - slack) | (taken == index.ntotal)
        chunk = max(1, ROWS_AT_ONCE // (taken * index.d))
        done = np.flatnonzero(settled)
        for start in range(0, len(done), chunk):
            rows = done[start : start + chunk]
            found = candidates[rows]
            products = stored[found] * queries[pending[rows], None, :].astype(np.float64)
            sharp = products.sum(-1).astype(np.float32)
            order = np.lexsort((found, -sharp), axis=-1)[:, :k]
            scores[pending[rows]] = np.take_along_axis(sharp, order, -1)
            positions[pending[rows]] = np.take_along_axis(found, order, -1)
        pending = pending[~settled]
        taken = min(index.ntotal, 4 * taken)
    return scores, positions


def merge_top_k(parts: list[tuple[np.ndarray, np.ndarray]], k: int) -> tuple[np.ndarray, np.ndarray]:
    """The best k over all shards: scores descending, ties by position. `parts` holds (queries, k_i) scores and positions of each shard,
    the positions being those in the whole knowledge base."""
    scores = np.concatenate([scores for scores, _ in parts], axis=1)
    positions = np.concatenate([positions for _, positions in parts], axis=1)
    order = np.lexsort((positions, -scores), axis=-1)[:, :k]
    return np.take_along_axis(scores, order, -1), np.take_along_axis(positions, order, -1)
