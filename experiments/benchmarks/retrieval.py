"""Speed of knowledge bases: exact and approximate search, through actors and against an HTTP server, one thread per shard.

Vectors are random: uniform directions, or clustered as those of real passages. `retrieval_quality` measures real questions.
"""

from __future__ import annotations

import itertools
import shutil
import tempfile
import time
import timeit
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import psutil
import ray
from threadpoolctl import threadpool_limits

from experiments.benchmarks.bench_results import BenchResult
from experiments.benchmarks.http_retriever import http_retriever
from experiments.benchmarks.retrieval_quality import quality_rows
from experiments.cluster.ray_session import start_ray
from experiments.config import TrainConfig
from retrieval_actors.actors.memory_plan import plan_memory
from retrieval_actors.actors.start_actors import start_retrieval
from retrieval_actors.build.from_passages import write_knowledge_base
from retrieval_actors.config import RetrievalConfig
from retrieval_actors.index.exact import exact_top_k, merge_top_k
from retrieval_actors.knowledge_base import KnowledgeBase
from retrieval_actors.records import Passage, Query
from retrieval_actors.sharded_search import Retriever

DIMENSION, K = 384, 10
PER_CENTRE = 100
"""Vectors around one centre, with cosine about .7 among them."""
TEXT = "passage {} of a benchmark, as long as a sentence of an encyclopedia usually is, about nothing in particular"
QUERIES = [Query(f"query number {number}") for number in range(256)]


def retrieval_rows(quick: bool) -> Iterator[BenchResult]:
    medium, large = (10_000, 50_000) if quick else (100_000, 1_000_000)
    folder = Path(tempfile.mkdtemp(prefix="bench-retrieval-"))
    try:
        with threadpool_limits(1):
            faiss.omp_set_num_threads(1)
            yield from exact_rows(medium)
            with start_ray(TrainConfig()):
                yield from actor_rows(medium, folder)
                yield from large_rows(large, folder)
                yield from server_rows(medium, folder)
                yield from server_rows(large, folder)
        yield from quality_rows(quick)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def directions(rng: np.random.Generator, size: int) -> np.ndarray:
    """(size, DIMENSION) float32 unit rows, uniform."""
    rows = rng.standard_normal((size, DIMENSION), dtype=np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def clustered(rng: np.random.Generator, size: int, queries: int) -> tuple[np.ndarray, np.ndarray]:
    """`size` vectors around size / PER_CENTRE centres, and `queries` near some of them."""
    centres = directions(rng, max(1, size // PER_CENTRE))
    vectors = centres[rng.integers(0, len(centres), size)] + 0.65 * directions(rng, size)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    near = vectors[rng.integers(0, size, queries)] + 0.5 * directions(rng, queries)
    return vectors, near / np.linalg.norm(near, axis=1, keepdims=True)


def per_second(items: int, work: Callable[..., object], *arguments: Any, seconds: float = 2.0) -> float:
    """Items a second of `work(*arguments)`, `items` in each call, over at least `seconds`, after one warm-up call."""
    work(*arguments)
    began, rounds, passed = time.perf_counter(), 0, 0.0
    while passed < seconds:
        work(*arguments)
        rounds, passed = rounds + 1, time.perf_counter() - began
    return rounds * items / passed


def median_ms(work: Callable[..., object], *arguments: Any) -> float:
    return 1e3 * float(np.median(timeit.repeat(lambda: work(*arguments), number=1, repeat=60)))


def exact_rows(size: int) -> Iterator[BenchResult]:
    """The exact search of one shard against FAISS's flat index, and against a matrix product."""
    rng = np.random.default_rng(1)
    vectors, asked = directions(rng, size), directions(rng, 256)
    index = faiss.IndexFlatIP(DIMENSION)
    index.add(vectors)
    for batch in (1, 32, 256):
        flat = per_second(batch, index.search, asked[:batch], K)
        ours = per_second(batch, exact_top_k, vectors, asked[:batch], K)
        name = f"exact search, {size:,} x {DIMENSION}, batch {batch}, against faiss.IndexFlatIP"
        yield BenchResult.of(name, ours, "queries/s", flat, 5.0 if batch == 256 else None)
    same = (exact_top_k(vectors, asked, K)[1] == index.search(asked, K)[1]).mean()
    yield BenchResult.of("the same at batch 256: same neighbours as FAISS", float(same), "share", bar=0.9999)


def actor_rows(size: int, folder: Path) -> Iterator[BenchResult]:
    """Through the actors, with query cache, merging and passages, against the bare search in this process with a thread for each shard."""
    rng = np.random.default_rng(2)
    for shards in (1, 2):
        base = write(folder, directions(rng, size), shards)
        with served(folder) as retriever, ThreadPoolExecutor(shards) as pool:
            vectors = ray.get(retriever.embedders["minilm"].embed_queries.remote("minilm", QUERIES), timeout=300)
            parts = [base.shard(number).vectors for number in range(shards)]
            what = f"{shards} actor{'s' * (shards > 1)}"
            for batch, bar in ((256, 0.85), (32, 0.5)):
                alone = per_second(batch, search_shards, parts, vectors[:batch], pool)
                through = per_second(batch, retriever.search, "bench", QUERIES[:batch], K)
                name = f"through {what}, {size:,} vectors, batch {batch}, against the search in-process"
                yield BenchResult.of(name, through, "queries/s", alone, bar)
            added = median_ms(retriever.search, "bench", QUERIES[:1], K) - median_ms(search_shards, parts, vectors[:1], pool)
            yield BenchResult.of(f"latency that {what} add to a single query, median", added, "ms", bar=3.0, at_most=True)


def large_rows(size: int, folder: Path) -> Iterator[BenchResult]:
    """`index=auto` for a large shard: build, load, recall, speed against exact search, and memory."""
    vectors, asked = clustered(np.random.default_rng(4), size, 1000)
    name = f"{size:,} x {DIMENSION}, clustered, one shard"
    began = time.perf_counter()
    base = write(folder, vectors, 1, "auto")
    chosen = base.manifest["shards"][0].get("index", "exact")
    yield BenchResult.of(f"{name}: index=auto ({chosen}), written, trained and tuned in", time.perf_counter() - began, "s")
    began = time.perf_counter()
    shard = KnowledgeBase.open(folder / "bench", verify=False).shard(0)
    shard.search(asked[:1], K)
    yield BenchResult.of(f"{name}: opened (checksums apart) and answering in", time.perf_counter() - began, "s", bar=1.0, at_most=True)
    _, truth = exact_top_k(vectors, asked, K)
    recall = np.mean([len(np.intersect1d(a, b)) / K for a, b in zip(shard.search(asked, K)[1], truth, strict=True)])
    yield BenchResult.of(f"{name}: recall@10 of {chosen}", float(recall), "share", bar=0.95)
    exact, quick = (per_second(256, search, *given, asked[:256], K) for search, given in ((exact_top_k, [vectors]), (shard.search, [])))
    yield BenchResult.of(f"{name}: {chosen}, batch 256, against the exact search", quick, "queries/s", exact)
    with served(folder, replicas=2) as retriever:
        for _ in range(6):
            retriever.search("bench", QUERIES, K)
        found = ray.get([replica.health.remote() for replica in retriever.shards["bench"][0]], timeout=60)
        first, second = (psutil.Process(int(process["pid"])).memory_full_info().uss for process in found)
    searched = plan_memory([base], replicas=1, nodes=[]).needs[0].searched_bytes
    share = second / (first + searched)
    yield BenchResult.of(f"{name}: own memory of a second actor, against one with the files", share, "share", bar=0.1, at_most=True)


def server_rows(size: int, folder: Path) -> Iterator[BenchResult]:
    """Against the HTTP baseline, in batches."""
    fresh = itertools.count()

    def texts() -> list[str]:
        return [f"who wrote book {next(fresh)} about the river ?" for _ in range(256)]

    write(folder, directions(np.random.default_rng(5), size), 2)
    with served(folder, embed_threads=2) as retriever:  # as many threads as the server has
        ours = per_second(256, lambda: retriever.search("bench", [Query(text) for text in texts()], K), seconds=6.0)
        again = per_second(256, retriever.search, "bench", [Query(text) for text in texts()], K, seconds=4.0)
    with http_retriever(folder / "bench", threads=2) as search:
        theirs = per_second(256, lambda: search(texts(), K), seconds=6.0)
    name = f"{size:,} vectors, batch 256, two shards, against a FastAPI process around one faiss.IndexFlatIP"
    yield BenchResult.of(f"{name}, new queries", ours, "queries/s", theirs, 3.0)
    yield BenchResult.of(f"{name}, queries that were asked before", again, "queries/s", theirs)


@contextmanager
def served(folder: Path, replicas: int = 1, embed_threads: int = 1) -> Iterator[Retriever]:
    config = RetrievalConfig({"bench": str(folder / "bench")}, replicas=replicas, embed_threads=embed_threads, shared_mib=0)
    retriever = start_retrieval(config)
    try:
        yield retriever
    finally:
        retriever.close()


def write(folder: Path, vectors: np.ndarray, shards: int, index: str = "exact") -> KnowledgeBase:
    passages = [Passage(str(row), TEXT.format(row)) for row in range(len(vectors))]
    card: dict[str, Any] = {"name": "bench", "retriever_name": "Text Retriever", "description": "", "modality": "text"}
    kinds: dict[str, Any] = {"embedder": "minilm", "shards": shards, "index": index}
    return write_knowledge_base(folder / "bench", passages=passages, vectors=vectors, **card, **kinds)


def search_shards(parts: list[np.ndarray], asked: np.ndarray, pool: ThreadPoolExecutor | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The search of all shards in this process, in threads of `pool`, merged."""
    firsts = np.cumsum([0, *map(len, parts)])
    found = list((pool.map if pool else map)(lambda part: exact_top_k(part, asked, K), parts))
    return merge_top_k([(scores, rows + first) for (scores, rows), first in zip(found, firsts, strict=False)], K)
