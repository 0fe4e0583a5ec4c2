"""One shard of a knowledge base in a process of its own."""

from __future__ import annotations

import os
from dataclasses import dataclass

import faiss
import numpy as np

from retrieval_actors.knowledge_base import KnowledgeBase
from retrieval_actors.passage_rows import PassageRows


@dataclass(frozen=True)
class ShardHits:
    """What one shard found for a batch of queries."""

    scores: np.ndarray
    """(queries, k) float32, descending; -inf where there is no more."""
    positions: np.ndarray
    """(queries, k) int64, in the whole knowledge base; -1 where there is no more."""
    found: np.ndarray
    """(rows,) int64, ascending: every position of the answer once, as many queries of a batch find the same passages."""
    passages: dict[str, list]
    """Column -> (rows) values: id, text, title, and the picture if it was asked for."""


class ShardActor:
    def __init__(self, folder: str, fingerprint: str, number: int, threads: int, gpu: bool = False, float16: bool = False):
        """`gpu`: hold what proposes candidates on the GPU that Ray gave this actor, as 16-bit numbers with `float16`.

        Raises KnowledgeBaseError when the folder is not the one with this `fingerprint` any more: a restarted shard of another knowledge base
        would give wrong answers beside the others.
        """
        from threadpoolctl import threadpool_limits

        faiss.omp_set_num_threads(threads)
        self._limits = threadpool_limits(threads)
        # Checksums were verified where the retrieval was started: a restart is not slowed down by hashing.
        shard = KnowledgeBase.open(folder, verify=False).same_as(fingerprint).shard(number)
        self._shard = shard.on_gpu(float16) if gpu else shard
        self._rows = PassageRows(shard.table)

    def ready(self) -> int:
        """Its process id, once it is loaded."""
        return os.getpid()

    def search(self, vectors: np.ndarray, k: int, pictures: bool = False) -> ShardHits:
        scores, rows = self._shard.search(vectors, k)
        return hits(self._rows, self._shard.first, scores, rows, pictures)

    def health(self) -> dict[str, float]:
        """Process id, passages, and bytes of memory: `rss`; `pss`, in which pages shared with others are split among them; `own`, which no file
        backs and nobody shares."""
        return {"pid": os.getpid(), "passages": self._rows.passages} | process_memory()


def hits(passages: PassageRows, first: int, scores: np.ndarray, rows: np.ndarray, pictures: bool) -> ShardHits:
    """The answer with its passages, `first` being the position of the first of `passages` in the knowledge base."""
    wanted = np.unique(rows[rows >= 0])
    return ShardHits(scores, np.where(rows >= 0, rows + first, -1), wanted + first, passages.read(wanted, pictures))


def process_memory() -> dict[str, float]:
    """`rss`, `pss` and `own` of this process in bytes, where the system tells (Linux)."""
    try:
        with open("/proc/self/smaps_rollup", encoding="ascii") as file:
            lines = dict(line.split(":", 1) for line in file if ":" in line)
        return {key: float(lines[name].split()[0]) * 1024 for key, name in (("rss", "Rss"), ("pss", "Pss"), ("own", "Anonymous"))}
    except (OSError, KeyError):
        return {}
