"""Approximate indexes, by FAISS factory string, tuned at build time to a recall.

They propose candidates, which are scored from the vectors themselves (`exact.rescored`): scores mean the same with every index.
"""

from pathlib import Path

import faiss
import numpy as np

from retrieval_actors.index.exact import exact_top_k, rescored

RECALL = 0.97  # recall@10 that an index is tuned to, with noisy passages as queries
PROBES = 256  # queries for tuning
NOISE = 0.5  # norm of the noise on a probe: cosine 0.9 to its passage
POINTS_PER_LIST, ROUNDS = 48, 8  # of k-means: training vectors for each list, and iterations
CANDIDATES = (16, 32, 64, 128, 256, 512)  # for each query
EFFORT = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)  # values of nprobe, or of efSearch


def check_index_name(index: str, dimension: int) -> None:
    """Raises ValueError unless `index` is `auto`, `exact` or a FAISS factory string for this dimension."""
    try:
        if index not in ("auto", "exact"):
            faiss.index_factory(dimension, index, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        expected = f"use auto, exact or a FAISS factory string for {dimension} dimensions, such as HNSW32 or IVF1024,SQ8"
        raise ValueError(f"index {index!r}: {expected}") from error


def choose_index(passages: int, dimension: int, memory_bytes: int) -> str:
    """The index for `auto`: exact up to 250,000 vectors that fit in a quarter of the memory; inverted lists of 8-bit vectors up to ten million that
    fit in half of it; else product quantisation."""
    if passages <= 250_000 and 4 * passages * dimension <= memory_bytes / 4:
        return "exact"
    lists = 2 ** max(0, round(np.log2(4 * max(1, passages) ** 0.5) - 1))
    if passages <= 10_000_000 and passages * dimension <= memory_bytes / 2:
        return f"IVF{lists},SQ8"
    return f"OPQ64_256,IVF{lists}_HNSW32,PQ64"


def make_index(vectors: np.ndarray, index: str, path: Path) -> dict[str, float]:
    """Trains, fills and writes `index` over (n, dimension) float32 unit rows; returns its search settings. Raises ValueError for too few rows."""
    built = faiss.index_factory(vectors.shape[1], index, faiss.METRIC_INNER_PRODUCT)
    lists = faiss.try_extract_index_ivf(built)
    if lists is not None:
        if len(vectors) < lists.nlist:
            raise ValueError(f"index {index!r} has {lists.nlist} lists for {len(vectors)} passages: use exact, or fewer lists")
        lists.cp.max_points_per_centroid, lists.cp.min_points_per_centroid, lists.cp.niter = POINTS_PER_LIST, 1, ROUNDS
    rng = np.random.default_rng(0)
    try:
        built.train(_sample(vectors, POINTS_PER_LIST * (lists.nlist if lists else 4096), rng))
    except RuntimeError as error:
        detail = str(error).strip().splitlines()[-1]
        raise ValueError(f"index {index!r} cannot be trained on {len(vectors)} passages ({detail}): use exact") from error
    for start in range(0, len(vectors), 1 << 16):
        built.add(np.ascontiguousarray(vectors[start : start + (1 << 16)]))
    faiss.write_index(built, str(path))
    return _tuned(built, vectors, rng)


def _sample(vectors: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """At most `size` rows, in order."""
    return np.ascontiguousarray(vectors[np.sort(rng.choice(len(vectors), min(len(vectors), size), replace=False))])


def proposed(index: faiss.Index, queries: np.ndarray, candidates: int) -> tuple[np.ndarray, np.ndarray]:
    """(n,) int64 rows that the index proposes, query by query, and the (queries + 1,) bounds between the queries."""
    _, rows = index.search(np.ascontiguousarray(queries, np.float32), min(candidates, index.ntotal))
    return rows[rows >= 0], np.concatenate([[0], np.cumsum((rows >= 0).sum(1))])


def open_index(path: Path, settings: dict[str, float]) -> faiss.Index:
    """Memory-mapped, with its search settings."""
    index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
    set_effort(index, settings)
    return index


def set_effort(index: faiss.Index, settings: dict[str, float]) -> None:
    """Applies the search settings that this kind of index has."""
    lists = faiss.try_extract_index_ivf(index)
    if lists is not None and "nprobe" in settings:
        lists.nprobe = int(settings["nprobe"])
    graph = faiss.downcast_index(index)
    if hasattr(graph, "hnsw") and "ef_search" in settings:
        graph.hnsw.efSearch = int(settings["ef_search"])


def _tuned(index: faiss.Index, vectors: np.ndarray, rng: np.random.Generator) -> dict[str, float]:
    """The least effort, then the fewest candidates, that reach RECALL; the most of each if none does."""
    probes = _sample(vectors, PROBES, rng)
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
