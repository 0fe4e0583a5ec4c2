"""Counts what all processes search, in one place, and answers for the health of the knowledge bases."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np

RECENT = 4096
"""Searches of a knowledge base whose time is remembered."""
WINDOW_S = 60.0
"""Of the rate of queries."""


@dataclass
class _Counts:
    searches: int = 0
    queries: int = 0
    seconds: float = 0.0
    errors: int = 0
    recent: deque[tuple[float, int, float]] = field(default_factory=lambda: deque(maxlen=RECENT))
    """(when, queries, seconds) of the last searches."""


class SearchLog:
    """Also remembers the handle of the retrieval that it belongs to, so that another process on the cluster can find and ask it."""

    def __init__(self) -> None:
        self._counts: dict[str, _Counts] = {}
        self._retriever: Any = None
        self._started = time.time()

    def record(self, kb: str, queries: int, seconds: float | None, errors: int) -> None:
        """`seconds`: of the call; None where the knowledge base was not even asked."""
        counts = self._counts.setdefault(kb, _Counts())
        counts.searches += 1
        counts.queries += queries
        counts.errors += errors
        if seconds is None:
            return
        counts.seconds += seconds
        counts.recent.append((time.time(), queries, seconds))

    def totals(self) -> dict[str, float]:
        """Over all knowledge bases since the start: searches, queries, seconds (summed over callers), errors (queries)."""
        keys = ("searches", "queries", "seconds", "errors")
        return {key: float(sum(getattr(counts, key) for counts in self._counts.values())) for key in keys}

    def health(self) -> dict[str, dict[str, float]]:
        """Knowledge base -> searches, queries, errors, queries_per_second (over the last minute), p50_ms and p99_ms of a search."""
        now, found = time.time(), {}
        for kb, counts in self._counts.items():
            latencies = [seconds for _, _, seconds in counts.recent] or [0.0]
            lately = sum(queries for when, queries, _ in counts.recent if when > now - WINDOW_S)
            since = counts.recent[0][0] if len(counts.recent) == RECENT else self._started
            found[kb] = {
                "searches": counts.searches,
                "queries": counts.queries,
                "errors": counts.errors,
                "queries_per_second": lately / min(WINDOW_S, max(now - since, 1e-3)),
                "p50_ms": 1e3 * float(np.percentile(latencies, 50)),
                "p99_ms": 1e3 * float(np.percentile(latencies, 99)),
            }
        return found

    def adopt(self, retriever: Any) -> None:
        self._retriever = retriever

    def retriever(self) -> Any:
        """None until it is known: while the retrieval starts, and when this process was restarted."""
        return self._retriever
