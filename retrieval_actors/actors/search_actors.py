"""The actors: shards and BM25 indexes, embedders with their query caches, and the reranker."""

import os
from collections.abc import Mapping
from contextlib import suppress

import faiss
import numpy as np
import psutil
import pyarrow as pa

from retrieval_actors.actors.query_cache import QueryCache
from retrieval_actors.embedders.registry import build_embedder
from retrieval_actors.embedders.text import Reranker
from retrieval_actors.index.bm25 import BM25Index
from retrieval_actors.knowledge_base import LEXICAL, KnowledgeBase, KnowledgeBaseError, Shard
from retrieval_actors.records import LEXICAL_SHARD, Query, ShardHits
from retrieval_actors.sharded_search import Unanswered

THREADS = 1  # CPU threads of a shard actor


class PassageRows:
    """Reads passages of a memory-mapped table by row. `pyarrow.Table.take` would copy whole columns that have several chunks."""

    def __init__(self, table: pa.Table):
        self._batches = table.to_batches()
        self._ends = np.cumsum([len(batch) for batch in self._batches])

    def hits(self, first: int, scores: np.ndarray, rows: np.ndarray, pictures: bool) -> ShardHits:
        """Adds the passages to scores and rows (-1: padding). `first`: position of row 0 in the knowledge base."""
        wanted = np.unique(rows[rows >= 0])
        numbers = np.searchsorted(self._ends, wanted, side="right")
        passages: dict[int, tuple[str, str, str, bytes | None]] = {}
        for number in np.unique(numbers):
            batch, here = self._batches[number], wanted[numbers == number]
            local = pa.array(here - (self._ends[number] - len(batch)))
            columns = [batch.column(name).take(local).to_pylist() for name in ("id", "text", "title")]
            columns.append(batch.column("image").take(local).to_pylist() if pictures else [None] * len(here))
            passages |= zip((here + first).tolist(), zip(*columns, strict=True), strict=True)
        return ShardHits(scores, np.where(rows >= 0, rows + first, -1), passages)


class _Process:
    def ready(self) -> int:
        """Its process id, once it has loaded."""
        return os.getpid()


class ShardActor(_Process):
    """Searches one shard, or several small ones, whichever knowledge bases they belong to."""

    def __init__(self, shards: Mapping[tuple[str, int], tuple[str, str]]):
        """`shards`: (knowledge base, number of the shard, or LEXICAL_SHARD) -> (folder, fingerprint)."""
        from threadpoolctl import threadpool_limits

        faiss.omp_set_num_threads(THREADS)
        self._limits = threadpool_limits(THREADS)
        self._shards, self._open = shards, dict[tuple[str, int], tuple[int, Shard | BM25Index, PassageRows]]()
        for shard in shards:
            with suppress(KnowledgeBaseError):  # after a restart a folder that was built again must not take the others along
                self._opened(*shard)

    def ready(self) -> int:
        """Raises KnowledgeBaseError if a folder has another fingerprint, for example after a rebuild."""
        for shard in self._shards:
            self._opened(*shard)
        return super().ready()

    def search(self, kb: str, number: int, queries: np.ndarray | list[str], k: int, pictures: bool = False) -> ShardHits | Unanswered:
        """`queries`: vectors, or texts for LEXICAL_SHARD. `Unanswered`: the folder cannot be opened any more; the other shards go on."""
        try:
            first, index, rows = self._opened(kb, number)
        except KnowledgeBaseError as error:
            return Unanswered(str(error))
        return rows.hits(first, *index.search(queries, k), pictures)  # type: ignore[arg-type]

    def health(self) -> dict[str, float]:
        """Process id, number of passages, and bytes of memory; shared pages are divided among the processes that share them (PSS)."""
        memory = psutil.Process().memory_full_info()
        passages = sum(len(index.table) for _, index, _ in self._open.values() if isinstance(index, Shard))
        return {"pid": os.getpid(), "passages": passages, "memory": getattr(memory, "pss", memory.rss)}

    def _opened(self, kb: str, number: int) -> tuple[int, Shard | BM25Index, PassageRows]:
        """(position of the first passage, index, passages)."""
        if (kb, number) not in self._open:
            folder, fingerprint = self._shards[kb, number]
            # Checksums were verified at the start; hashing again would slow a restart down.
            base = KnowledgeBase.open(folder, False, fingerprint)
            if number == LEXICAL_SHARD:
                tables = [base.shard(number).table for number in range(base.card.shards)]
                self._open[kb, number] = 0, BM25Index.load(base.folder / LEXICAL), PassageRows(pa.concat_tables(tables))
            else:
                shard = base.shard(number)
                self._open[kb, number] = shard.first, shard, PassageRows(shard.table)
        return self._open[kb, number]


class EmbedderActor(_Process):
    """Embedders that share a model, each with a query cache."""

    def __init__(self, names: list[str], threads: int):
        self._caches = {name: QueryCache(build_embedder(name, threads)) for name in names}

    def dimension(self, name: str) -> int:
        return self._caches[name].embedder.dimension

    def embed_queries(self, name: str, queries: list[Query]) -> np.ndarray:
        return self._caches[name].embed(queries)

    def cache_counts(self) -> tuple[int, int]:
        """(hits, misses) since the actor was started."""
        return sum(cache.hits for cache in self._caches.values()), sum(cache.misses for cache in self._caches.values())


class RerankerActor(_Process, Reranker):
    """A `Reranker` in a process of its own: call `scores`."""
