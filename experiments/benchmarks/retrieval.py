"""How fast knowledge bases answer: the search itself, through actors, as they grow, and against what a user would start otherwise.

Every ratio is taken within one run, one thread for each shard. Vectors are drawn: uniform directions, or around centres as those of real passages
lie. `retrieval_quality` measures on real questions.
"""

from __future__ import annotations

import itertools
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import ray
from threadpoolctl import threadpool_limits

from experiments.benchmarks.http_retriever import HttpRetriever
from experiments.benchmarks.retrieval_plot import plot_growth
from experiments.benchmarks.retrieval_quality import quality_rows
from experiments.benchmarks.row import Row
from experiments.cluster import start_ray
from experiments.config import TrainConfig
from retrieval_actors.config import RetrievalConfig
from retrieval_actors.exact_search import exact_top_k, merge_top_k
from retrieval_actors.knowledge_base import KnowledgeBase
from retrieval_actors.memory_plan import plan_memory
from retrieval_actors.records import Passage, Query
from retrieval_actors.retriever import Retriever
from retrieval_actors.shard_files import new_folder, passage_table, write_manifest, write_shard
from retrieval_actors.start import start_retrieval

DIMENSION, K = 384, 10
PER_CENTRE = 100
"""Vectors around one centre: cosine about .7 among them."""
CHUNK = 2048
TEXTS = "passage {} of a benchmark, as long as a sentence of an encyclopedia usually is, about nothing in particular"


def retrieval_rows(quick: bool) -> Iterator[Row]:
    large = 50_000 if quick else 1_000_000
    medium = 10_000 if quick else 100_000
    folder = Path(tempfile.mkdtemp(prefix="bench-retrieval-"))
    try:
        with threadpool_limits(1):
            faiss.omp_set_num_threads(1)
            yield from equality_rows(medium // 10, 200 if quick else 1000)
            yield from exact_rows(medium)
            with start_ray(TrainConfig()):
                yield from actor_rows(medium, folder)
                yield from growth_rows((medium // 10, medium, large), folder)
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
    """Items a second of `work(*arguments)`, each call of which does `items`, over at least `seconds`, after one call that does not count."""
    work(*arguments)
    began, rounds, passed = time.perf_counter(), 0, 0.0
    while passed < seconds:
        work(*arguments)
        rounds, passed = rounds + 1, time.perf_counter() - began
    return rounds * items / passed


def equality_rows(size: int, queries: int) -> Iterator[Row]:
    """However the vectors are cut, the answer is that of one index."""
    rng = np.random.default_rng(0)
    near, asked_near = clustered(rng, size, queries)
    for name, vectors, asked in (("random", directions(rng, size), directions(rng, queries)), ("clustered", near, asked_near)):
        scores, ids = exact_top_k(vectors, asked, K)
        index = faiss.IndexFlatIP(DIMENSION)
        index.add(vectors)
        faiss_scores, _ = index.search(asked, K)
        same, difference = 1.0, float(np.abs(scores - faiss_scores).max())
        for shards in range(1, 9):
            merged_scores, merged_ids = _merged(_cut(vectors, shards), asked)
            same = min(same, float((merged_ids == ids).mean()))
            difference = max(difference, float(np.abs(merged_scores - scores).max()))
        what = f"{queries:,} {name} queries, {size:,} vectors, 1 to 8 shards"
        yield Row.of(f"{what}: same ids as one exact index", same, "share", bar=1.0)
        yield Row.of(f"{what}: largest difference of a score, FAISS's included", difference, "", bar=1e-5, at_most=True)


def exact_rows(size: int) -> Iterator[Row]:
    """The exact search of one shard against FAISS's flat index, and against the matrix product that it consists of."""
    rng = np.random.default_rng(1)
    vectors, asked = directions(rng, size), directions(rng, 256)
    index = faiss.IndexFlatIP(DIMENSION)
    index.add(vectors)
    for batch in (1, 32, 256):
        queries = asked[:batch]
        flat = per_second(batch, index.search, queries, K)
        ours = per_second(batch, exact_top_k, vectors, queries, K)
        name = f"exact search, {size:,} x {DIMENSION}, batch {batch}, against faiss.IndexFlatIP"
        yield Row.of(name, ours, "queries/s", flat, 5.0 if batch == 256 else None)
    product = per_second(256, lambda: [vectors[start : start + 2048] @ asked.T for start in range(0, size, 2048)])
    yield Row.of("the same at batch 256, against the bare matrix product (the limit)", ours, "queries/s", product)
    same = (exact_top_k(vectors, asked, K)[1] == index.search(asked, K)[1]).mean()
    yield Row.of("the same at batch 256: same neighbours as FAISS", float(same), "share", bar=0.9999)


def actor_rows(size: int, folder: Path) -> Iterator[Row]:
    """Through the actors, with embedder cache, merging and passages, against the bare search in this process with a thread for each shard."""
    rng = np.random.default_rng(2)
    queries = [Query(f"query number {number}") for number in range(256)]
    for shards in (1, 2):
        _write(folder, directions(rng, size), shards, "exact")
        with served(folder) as retriever, ThreadPoolExecutor(shards) as pool:
            vectors = ray.get(retriever.embedders["minilm"].embed_queries.remote("minilm", queries), timeout=300)
            parts = [KnowledgeBase.open(folder / "bench", verify=False).shard(number).stored for number in range(shards)]
            for batch, bar in ((256, 0.85), (32, 0.5)):
                asked, texts = vectors[:batch], queries[:batch]
                alone = per_second(batch, _merged, parts, asked, pool)
                through = per_second(batch, retriever.search, "bench", texts, K)
                name = f"through {shards} actor{'s' * (shards > 1)}, {size:,} vectors, batch {batch}, against the search in-process"
                yield Row.of(name, through, "queries/s", alone, bar)
            single, bare = _median_ms(retriever.search, "bench", queries[:1], K), _median_ms(_merged, parts, vectors[:1], pool)
            name = f"latency that {shards} actor{'s' * (shards > 1)} add{'s' * (shards == 1)} to a single query, median"
            yield Row.of(name, single - bare, "ms", bar=3.0, at_most=True)


def growth_rows(sizes: tuple[int, ...], folder: Path) -> Iterator[Row]:
    """Exact search through actors as the knowledge base grows and is cut."""
    rng = np.random.default_rng(3)
    queries = [Query(f"query number {number}") for number in range(256)]
    found: dict[int, list[tuple[int, float]]] = {}
    for size in sizes:
        vectors = directions(rng, size)
        for shards in (1, 2, 4, 8):
            _write(folder, vectors, shards, "exact")
            with served(folder) as retriever:
                rate = per_second(len(queries), retriever.search, "bench", queries, K, seconds=1.0)
            found.setdefault(shards, []).append((size, rate))
            yield Row.of(f"exact search through actors, {size:,} vectors in {shards} shards, batch 256", rate, "queries/s")
    plot_growth(found, Path("bench/retrieval_growth.png"))


def large_rows(size: int, folder: Path) -> Iterator[Row]:
    """What `index=auto` makes of a large shard: build, load, memory, recall, and queries a second against the exact search."""
    rng = np.random.default_rng(4)
    vectors, asked = clustered(rng, size, 1000)
    name = f"{size:,} x {DIMENSION}, clustered, one shard"
    began = time.perf_counter()
    base = _write(folder, vectors, 1, "auto")
    chosen = base.manifest["shards"][0].get("index", "exact")
    yield Row.of(f"{name}: index=auto ({chosen}), written, trained and tuned in", time.perf_counter() - began, "s")
    began = time.perf_counter()
    shard = KnowledgeBase.open(folder / "bench", verify=False).shard(0)
    shard.search(asked[:1], K)
    yield Row.of(f"{name}: opened (checksums apart) and answering in", time.perf_counter() - began, "s", bar=1.0, at_most=True)
    _, truth = exact_top_k(vectors, asked, K)
    _, ids = shard.search(asked, K)
    recall = np.mean([len(np.intersect1d(a, b)) / K for a, b in zip(ids, truth, strict=True)])
    yield Row.of(f"{name}: recall@10 of {chosen}", float(recall), "share", bar=0.95)
    exact = per_second(256, exact_top_k, vectors, asked[:256], K)
    found = per_second(256, shard.search, asked[:256], K)
    yield Row.of(f"{name}: {chosen}, batch 256, against the exact search", found, "queries/s", exact)
    for index in ("auto", "exact") if chosen != "exact" else ("auto",):
        if index == "exact":
            base = _with_exact_index(folder / "bench")
        yield from _memory_rows(f"{name}, {chosen if index == 'auto' else 'exact'}", base, folder)


def _memory_rows(name: str, base: KnowledgeBase, folder: Path) -> Iterator[Row]:
    """Of two actors that hold the same shard. What they map is theirs together, and only as far in memory as the system keeps it there: the
    share that the second adds is taken of the whole files that a search reads."""
    queries = [Query(f"query number {number}") for number in range(256)]
    with served(folder, replicas=2) as retriever:
        for _ in range(6):
            retriever.search("bench", queries, K)
        first, second = ray.get([replica.health.remote() for replica in retriever.shards["bench"][0]], timeout=60)
    (need,) = plan_memory([base], replicas=1, nodes=[]).needs
    yield Row.of(f"{name}: files that every search reads", need.searched_bytes / 2**20, "MiB")
    yield Row.of(f"{name}: proportional set size of two actors together", (first["pss"] + second["pss"]) / 2**20, "MiB")
    yield Row.of(f"{name}: memory of its own that the second actor has", second["own"] / 2**20, "MiB")
    added = second["own"] / (first["own"] + need.searched_bytes)
    yield Row.of(f"{name}: what that adds to one actor with these files", added, "share", bar=0.1, at_most=True)


def server_rows(size: int, folder: Path) -> Iterator[Row]:
    """Against a FastAPI process around one FAISS index and one embedder, asked by JSON over HTTP in batches: the retriever of Search-R1."""
    rng = np.random.default_rng(5)
    vectors = directions(rng, size)
    fresh = iter(range(10**9))

    def texts() -> list[str]:
        return [f"who wrote book {next(fresh)} about the river ?" for _ in range(256)]

    _write(folder, vectors, 2, "exact")
    del vectors
    with served(folder, embed_threads=2) as retriever:  # as many threads as the server has
        ours = per_second(256, lambda: retriever.search("bench", [Query(text) for text in texts()], K), seconds=6.0)
        again = per_second(256, retriever.search, "bench", [Query(text) for text in texts()], K, seconds=4.0)
    with HttpRetriever(folder / "bench") as server:
        theirs = per_second(256, lambda: server.search(texts(), K), seconds=6.0)
    name = f"{size:,} vectors, batch 256, two shards, against a FastAPI process around one faiss.IndexFlatIP"
    yield Row.of(f"{name}, new queries", ours, "queries/s", theirs, 3.0)
    yield Row.of(f"{name}, queries that were asked before", again, "queries/s", theirs)


@contextmanager
def served(folder: Path, replicas: int = 1, embed_threads: int = 1) -> Iterator[Retriever]:
    config = RetrievalConfig({"bench": str(folder / "bench")}, replicas=replicas, embed_threads=embed_threads)
    retriever = start_retrieval(config)
    try:
        yield retriever
    finally:
        retriever.close()


def _write(folder: Path, vectors: np.ndarray, shards: int, index: str) -> KnowledgeBase:
    """In chunks, as `build_kb` writes it."""
    bounds = [len(vectors) * number // shards for number in range(shards + 1)]
    with new_folder(folder / "bench") as aside:
        entries = [
            write_shard(aside, number, first, _chunks(vectors, first, last), DIMENSION, index)
            for number, (first, last) in enumerate(itertools.pairwise(bounds))
        ]
        write_manifest(
            aside,
            name="bench",
            retriever_name="Text Retriever",
            description="",
            modality="text",
            embedder="minilm",
            dimension=DIMENSION,
            index=index,
            entries=entries,
        )
    return KnowledgeBase.open(folder / "bench", verify=False)


def _chunks(vectors: np.ndarray, first: int, last: int) -> Iterator[tuple[pa.Table, np.ndarray]]:
    for start in range(first, last, CHUNK):
        rows = range(start, min(start + CHUNK, last))
        yield passage_table([Passage(str(row), TEXTS.format(row)) for row in rows]), vectors[rows.start : rows.stop]


def _with_exact_index(folder: Path) -> KnowledgeBase:
    """The same knowledge base without what proposes candidates."""
    import json

    path = folder / "kb.json"
    manifest = json.loads(path.read_text())
    for entry in manifest["shards"]:
        for key in ("index_file", "index", "search"):
            entry.pop(key, None)
    path.write_text(json.dumps(manifest))
    return KnowledgeBase.open(folder, verify=False)


def _cut(vectors: np.ndarray, shards: int) -> list[np.ndarray]:
    bounds = [len(vectors) * number // shards for number in range(shards + 1)]
    return [vectors[first:last] for first, last in itertools.pairwise(bounds)]


def _merged(parts: list[np.ndarray], asked: np.ndarray, pool: ThreadPoolExecutor | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The search of all shards in this process, in threads of `pool`, merged."""
    firsts = np.cumsum([0, *map(len, parts)])
    found = list((pool.map if pool else map)(lambda part: exact_top_k(part, asked, K), parts))
    return merge_top_k([(scores, rows + first) for (scores, rows), first in zip(found, firsts, strict=False)], K)


def _median_ms(work: Callable[..., object], *arguments: Any, rounds: int = 60) -> float:
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        work(*arguments)
        times.append(time.perf_counter() - began)
    return 1e3 * float(np.median(times))
