"""Indexes that propose candidates: by FAISS factory string, tuned at build time to the recall that was asked for.

Whatever they propose is scored again from the vectors themselves (`exact_search.rescored`), so scores mean the same everywhere.
"""

from __future__ import annotations

from pathlib import Path

import faiss
import numpy as np

from retrieval_actors.exact_search import exact_top_k, rescored

RECALL = 0.97
"""Recall@10 against the exact search that an index is tuned to, on queries that are passages with noise."""
PROBES = 256
NOISE = 0.5
"""Norm of the noise on a probe, which is a passage: cosine 0.9 to it."""
POINTS_PER_LIST, ROUNDS = 48, 8
"""Of k-means: vectors that a list is trained on, and iterations."""
CANDIDATES = (16, 32, 64, 128, 256, 512)
EFFORT = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


def check_index_name(index: str, dimension: int) -> None:
    """Raises ValueError for what is neither `auto`, `exact` nor a FAISS factory string for this dimension."""
    if index in ("auto", "exact"):
        return
    try:
        faiss.index_factory(dimension, index, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise ValueError(
            f"index {index!r}: use auto, exact or a FAISS factory string for {dimension} dimensions, such as HNSW32, IVF1024,SQ8 or "
            "OPQ48_192,IVF4096,PQ48"
        ) from error


def choose_index(passages: int, dimension: int, memory_bytes: int) -> str:
    """What `auto` means for a shard of so many vectors on machines with so much memory.

    Exact while that is quick and small: up to a quarter of a million vectors it answers hundreds of queries a second on one core, needs no
    tuning, and may take a quarter of the memory. Then inverted lists, about twice as many as the square root of the passages, of 8-bit
    vectors (a quarter of the size), while these take at most half of the memory and are at most ten million; then product quantisation.
    Candidates are always scored again from the memory-mapped vectors.
    """
    if passages <= 250_000 and 4 * passages * dimension <= memory_bytes / 4:
        return "exact"
    lists = 2 ** max(0, round(np.log2(4 * max(1, passages) ** 0.5) - 1))
    if passages <= 10_000_000 and passages * dimension <= memory_bytes / 2:
        return f"IVF{lists},SQ8"
    return f"OPQ64_256,IVF{lists}_HNSW32,PQ64"


def make_index(vectors: np.ndarray, index: str, path: Path) -> dict[str, float]:
    """Trains and tunes `index` over (n, dimension) float32 unit rows and writes it; returns how it is to be searched.

    One thread builds the same bytes every time (`faiss.omp_set_num_threads`); HNSW on several does not.
    Raises ValueError when there are too few vectors to train it.
    """
    built = faiss.index_factory(vectors.shape[1], index, faiss.METRIC_INNER_PRODUCT)
    lists = faiss.try_extract_index_ivf(built)
    if lists is not None and len(vectors) < lists.nlist:
        raise ValueError(f"index {index!r} has {lists.nlist} lists for {len(vectors)} passages: use exact, or fewer lists")
    if isinstance(rotated := faiss.downcast_index(built), faiss.IndexPreTransform):
        rotation = faiss.downcast_VectorTransform(rotated.chain.at(0))  # type: ignore[attr-defined]
        if isinstance(rotation, faiss.OPQMatrix):
            rotation.niter, rotation.niter_pq_0 = 10, 10  # of 50 and 40: what is proposed is scored again anyway
    rng = np.random.default_rng(0)
    # Centres for plain lists are found here, and each vector's nearest: FAISS's own matrix product takes eight times as long.
    centres = None
    if lists is not None:
        lists.cp.max_points_per_centroid, lists.cp.min_points_per_centroid, lists.cp.niter = POINTS_PER_LIST, 1, ROUNDS
        if isinstance(rotated, faiss.IndexIVF) and isinstance(faiss.downcast_index(lists.quantizer), faiss.IndexFlat):
            centres = spherical_k_means(_sample(vectors, POINTS_PER_LIST * lists.nlist, rng), lists.nlist, rng)
            lists.quantizer.add(centres)
    if not built.is_trained:
        try:
            built.train(_sample(vectors, POINTS_PER_LIST * (lists.nlist if lists else 4096), rng))
        except RuntimeError as error:
            said = str(error).strip().splitlines()[-1]
            raise ValueError(f"index {index!r} cannot be trained on {len(vectors)} passages ({said}): use exact") from error
    for start in range(0, len(vectors), 1 << 16):
        rows = np.ascontiguousarray(vectors[start : start + (1 << 16)])
        if centres is None:
            built.add(rows)
        else:
            nearest = np.ascontiguousarray(_nearest(centres, rows))
            rotated.add_core(len(rows), faiss.swig_ptr(rows), None, faiss.swig_ptr(nearest))  # type: ignore[attr-defined]
    faiss.write_index(built, str(path))
    return _tuned(built, vectors, rng)


def spherical_k_means(sample: np.ndarray, clusters: int, rng: np.random.Generator) -> np.ndarray:
    """(clusters, dimension) float32 unit centres of (n, dimension) unit rows (Dhillon and Modha, 2001). A cluster that loses all its rows
    begins again at one of them."""
    centres = sample[rng.choice(len(sample), clusters, replace=False)]
    for _ in range(ROUNDS):
        nearest = _nearest(centres, sample)
        order = np.argsort(nearest, kind="stable")
        there, first = np.unique(nearest[order], return_index=True)
        centres = sample[rng.choice(len(sample), clusters, replace=False)]
        sums = np.add.reduceat(sample[order], first)
        centres[there] = sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)
    return centres


def _nearest(centres: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """(n,) int64: the centre with the largest inner product."""
    parts = [np.argmax(vectors[start : start + 2048] @ centres.T, axis=1) for start in range(0, len(vectors), 2048)]
    return np.concatenate(parts).astype(np.int64)


def _sample(vectors: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    return np.ascontiguousarray(vectors[np.sort(rng.choice(len(vectors), min(len(vectors), size), replace=False))])


def proposed(index: faiss.Index, queries: np.ndarray, candidates: int) -> tuple[np.ndarray, np.ndarray]:
    """The rows that it proposes, without those it did not find, and (queries + 1,) where those of each query begin."""
    _, rows = index.search(np.ascontiguousarray(queries, np.float32), min(candidates, index.ntotal))
    return rows[rows >= 0], np.concatenate([[0], np.cumsum((rows >= 0).sum(1))])


def set_effort(index: faiss.Index, settings: dict[str, float]) -> None:
    """Search as it was tuned; settings that the index does not have are left alone."""
    lists = faiss.try_extract_index_ivf(index)
    if lists is not None and "nprobe" in settings:
        lists.nprobe = int(settings["nprobe"])
    graph = faiss.downcast_index(index)
    if hasattr(graph, "hnsw") and "ef_search" in settings:
        graph.hnsw.efSearch = int(settings["ef_search"])


def _tuned(index: faiss.Index, vectors: np.ndarray, rng: np.random.Generator) -> dict[str, float]:
    """The least effort, then the fewest candidates, that reach RECALL; the most there is where none does."""
    probes = vectors[np.sort(rng.choice(len(vectors), min(PROBES, len(vectors)), replace=False))]
    noise = rng.standard_normal(probes.shape).astype(np.float32)
    probes = probes + NOISE * noise / np.linalg.norm(noise, axis=1, keepdims=True)
    probes /= np.linalg.norm(probes, axis=1, keepdims=True)
    _, truth = exact_top_k(vectors, probes, 10)
    lists = faiss.try_extract_index_ivf(index)
    effort = "nprobe" if lists is not None else "ef_search"
    settings: dict[str, float] = {}

    def recall(settings: dict[str, float]) -> float:
        set_effort(index, settings)
        _, found = rescored(vectors, probes, *proposed(index, probes, int(settings["candidates"])), truth.shape[1])
        return float(np.mean([len(np.intersect1d(a, b)) / len(a) for a, b in zip(truth, found, strict=True)]))

    for tried in EFFORT:
        settings = {effort: min(tried, lists.nlist) if lists is not None else tried, "candidates": CANDIDATES[-1]}
        if recall(settings) >= RECALL or settings[effort] < tried:
            break
    for candidates in CANDIDATES:
        settings = settings | {"candidates": candidates}
        if (reached := recall(settings)) >= RECALL:
            break
    return settings | {"recall_at_10": round(reached, 4)}
