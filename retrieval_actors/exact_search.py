"""The top k by inner product, exactly: the answer depends on the vectors only, not on how they were cut into shards or batches.

FAISS's flat index reaches a tenth of the matrix product that it consists of (on the CPUs that were measured), so the product is numpy's, block by
block, and only what passes the k-th best so far is looked at again.
"""

from __future__ import annotations

import faiss
import numpy as np

BLOCK = 2048
"""Vectors in one matrix product: with its scores, it stays in the cache of a core."""
QUERIES_AT_ONCE = 256
FEW = 6
"""Up to so many queries the time goes into reading the vectors from memory: there FAISS's own inner products are twice as fast as BLAS."""
MOST_CANDIDATES = 1 << 18
"""Candidates of one group of queries that are kept before they are settled: a bound on memory for knowledge bases full of equal passages."""
NUMBERS_AT_ONCE = 1 << 22
"""Bound on the numbers (candidates * dimension) that are compared again side by side."""


def exact_top_k(vectors: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """(queries, k) float32 scores, descending, and (queries, k) int64 rows, of unit queries over (n, dimension) float32 unit vectors.

    Single precision decides only who is surely out: it adds in an order that depends on the batch, so those within its error bound of rank k
    are compared again in double precision, and ties go to the earlier row. `k` larger than n returns all of them.
    """
    k = min(k, len(vectors))
    if not k or not len(queries):
        return np.zeros((len(queries), k), np.float32), np.zeros((len(queries), k), np.int64)
    queries = np.ascontiguousarray(queries, np.float32)
    starts = range(0, len(queries), QUERIES_AT_ONCE)
    found = [_top_k(vectors, queries[start : start + QUERIES_AT_ONCE], k) for start in starts]
    return np.concatenate([scores for scores, _ in found]), np.concatenate([rows for _, rows in found])


def _top_k(vectors: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    # Twice the error bound of a float32 sum of `dimension` products of unit vectors.
    slack = np.float32(2 * vectors.shape[1] * 2.0**-24 + 2.0**-22)
    best = np.full((len(queries), k), -np.inf, np.float32)
    least = np.full(len(queries), -np.inf, np.float32)
    owners: list[np.ndarray] = []
    rows: list[np.ndarray] = []
    waiting = 0
    for start in range(0, len(vectors), BLOCK):
        rough = _products(vectors[start : start + BLOCK], queries)
        if start == 0 and len(rough) > k:
            least = np.partition(rough.T, len(rough) - k, axis=1)[:, len(rough) - k] - slack
        column, owner = np.divmod(np.flatnonzero(rough >= least), len(queries))
        if not len(owner):
            continue
        order = np.argsort(owner, kind="stable")
        owner, column = owner[order], column[order]
        best = _raised(best, owner, rough[column, owner])
        least = best[:, 0] - slack
        owners.append(owner)
        rows.append(column + start)
        waiting += len(owner)
        if waiting > max(MOST_CANDIDATES, 4 * best.size):
            _, settled = rescored(vectors, queries, *_by_query(len(queries), owners, rows), k)
            owners, rows = [np.nonzero(settled >= 0)[0]], [settled[settled >= 0]]
            waiting = 0
    return rescored(vectors, queries, *_by_query(len(queries), owners, rows), k)


def _products(block: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """(vectors of the block, queries) float32 inner products."""
    if len(queries) > FEW:
        return block @ queries.T
    products = np.empty((len(queries), len(block)), np.float32)
    vectors = faiss.swig_ptr(block)
    for query, row in zip(queries, products, strict=True):
        faiss.fvec_inner_products_ny(faiss.swig_ptr(row), faiss.swig_ptr(query), vectors, block.shape[1], len(block))  # type: ignore[attr-defined]
    return np.ascontiguousarray(products.T)


def _raised(best: np.ndarray, owner: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """(queries, k) best scores so far, the least of them first, after more scores; `owner` (ascending) says whose each is."""
    counts = np.bincount(owner, minlength=len(best))
    place = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
    wide = np.full((len(best), best.shape[1] + counts.max()), -np.inf, np.float32)
    wide[:, : best.shape[1]] = best
    wide[owner, best.shape[1] + place] = scores
    return np.partition(wide, counts.max(), axis=1)[:, counts.max() :]


def _by_query(queries: int, owners: list[np.ndarray], rows: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Candidates sorted by query: their rows (candidates,), and (queries + 1,) where each query's begin."""
    owner = np.concatenate(owners)
    order = np.argsort(owner, kind="stable")
    return np.concatenate(rows)[order], np.concatenate([[0], np.cumsum(np.bincount(owner, minlength=queries))])


def rescored(vectors: np.ndarray, queries: np.ndarray, candidates: np.ndarray, bounds: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The best k of each query's candidates by products in double precision, ties to the earlier row.

    `candidates` (n,) int64 are rows of `vectors`, those of query i from bounds[i] to bounds[i + 1]. Returns (queries, k) float32 scores,
    descending, and (queries, k) int64 rows; where a query has fewer candidates, the rest is (-inf, -1).
    """
    owner = np.repeat(np.arange(len(queries)), np.diff(bounds))
    sharp = np.empty(len(candidates), np.float32)
    step = max(1, NUMBERS_AT_ONCE // vectors.shape[1])
    for start in range(0, len(candidates), step):
        part = slice(start, start + step)
        sharp[part] = (vectors[candidates[part]] * queries[owner[part]].astype(np.float64)).sum(-1)
    order = np.lexsort((candidates, -sharp, owner))
    place = np.arange(len(candidates)) - np.repeat(bounds[:-1], np.diff(bounds))
    kept = order[place < k]
    scores = np.full((len(queries), k), -np.inf, np.float32)
    rows = np.full((len(queries), k), -1, np.int64)
    scores[owner[kept], place[place < k]] = sharp[kept]
    rows[owner[kept], place[place < k]] = candidates[kept]
    return scores, rows


def merge_top_k(parts: list[tuple[np.ndarray, np.ndarray]], k: int) -> tuple[np.ndarray, np.ndarray]:
    """The best k over all shards: scores descending, ties by position. `parts` holds (queries, k_i) scores and positions of each shard,
    the positions being those in the whole knowledge base."""
    scores = np.concatenate([scores for scores, _ in parts], axis=1)
    positions = np.concatenate([positions for _, positions in parts], axis=1)
    order = np.lexsort((positions, -scores), axis=-1)[:, :k]
    return np.take_along_axis(scores, order, -1), np.take_along_axis(positions, order, -1)
