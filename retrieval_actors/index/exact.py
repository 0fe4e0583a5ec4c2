"""Exact top k by inner product: the answer does not depend on how the vectors are cut into shards or the queries into batches.

A matrix product in single precision, whose sums depend on the batch, finds all rows within their error bound of rank k, block by block; these
are scored again in double precision.
"""

import numpy as np

BLOCK = 1 << 13  # vectors in one matrix product
GROUP = 16  # the k-th best of the maxima of groups of vectors is a lower bound of the k-th best of all, and quicker to find
QUERIES_AT_ONCE = 256
NUMBERS_AT_ONCE = 1 << 22  # bound on candidates * dimension in one step of `rescored`


def exact_top_k(vectors: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """(queries, min(k, n)) float32 scores, descending, and int64 rows, of unit queries over (n, dimension) float32 unit vectors."""
    k = min(k, len(vectors))
    if not k or not len(queries):
        return np.zeros((len(queries), k), np.float32), np.zeros((len(queries), k), np.int64)
    queries = np.ascontiguousarray(queries, np.float32)
    found = [_top_k(vectors, queries[start : start + QUERIES_AT_ONCE], k) for start in range(0, len(queries), QUERIES_AT_ONCE)]
    return np.concatenate([scores for scores, _ in found]), np.concatenate([rows for _, rows in found])


def _top_k(vectors: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    # Twice the error bound of a float32 sum of `dimension` products of unit vectors.
    slack = np.float32(2 * vectors.shape[1] * 2.0**-24 + 2.0**-22)
    best = np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
    least = np.full(len(queries), -np.inf, np.float32)
    for start in range(0, len(vectors), BLOCK):
        rough = queries @ vectors[start : start + BLOCK].T
        groups = len(rough[0]) // GROUP
        if start == 0 and groups >= k:
            maxima = rough[:, : groups * GROUP].reshape(len(queries), groups, GROUP).max(2)
            least = np.partition(maxima, groups - k, axis=1)[:, groups - k]
        owner, row = np.divmod(np.flatnonzero(rough >= (least - slack)[:, None]), rough.shape[1])
        if len(owner):
            bounds = np.searchsorted(owner, np.arange(len(queries) + 1))
            best = merge_top_k([best, rescored(vectors, queries, row + start, bounds, k)], k)
            if best[0].shape[1] == k:
                least = np.maximum(least, best[0][:, -1])
    return best


def rescored(vectors: np.ndarray, queries: np.ndarray, candidates: np.ndarray, bounds: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """(queries, k) float32 scores, descending, and int64 rows, padded with (-inf, -1): the best of each query's candidates by products in double
    precision, ties to the earlier row. `candidates` (n,) int64: rows of `vectors`, those of query i from bounds[i] to bounds[i + 1]."""
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
    """The best k over all shards, scores descending, ties by position. `parts`: (queries, k_i) scores and positions in the knowledge base."""
    scores = np.concatenate([scores for scores, _ in parts], axis=1)
    positions = np.concatenate([positions for _, positions in parts], axis=1)
    order = np.lexsort((positions, -scores), axis=-1)[:, :k]
    return np.take_along_axis(scores, order, -1), np.take_along_axis(positions, order, -1)
