"""The actor that counts searches. It imports neither indexes nor models."""

import time
from collections import Counter, defaultdict, deque
from typing import Any

import numpy as np

RECENT = 4096  # searches of a knowledge base whose latency is kept
WINDOW_S = 60.0  # over which queries per second are counted


class SearchLog:
    """Counts the searches of all processes, and stores the `Retriever`, so that other processes on the cluster can find it."""

    def __init__(self) -> None:
        self._totals: defaultdict[str, Counter[str]] = defaultdict(Counter)
        # (time, queries, seconds) of the last searches
        self._recent: defaultdict[str, deque[tuple[float, int, float]]] = defaultdict(lambda: deque(maxlen=RECENT))
        self._started, self._retriever = time.time(), None

    def record(self, kb: str, queries: int, seconds: float | None, errors: int) -> None:
        """`seconds`: of the call; None if its circuit breaker was open."""
        self._totals[kb].update({"searches": 1, "queries": queries, "seconds": seconds or 0, "errors": errors})
        if seconds is not None:
            self._recent[kb].append((time.time(), queries, seconds))

    def totals(self) -> dict[str, float]:
        """Over all knowledge bases since the start: searches, queries, seconds (summed over callers), errors (queries)."""
        return {key: float(sum(totals[key] for totals in self._totals.values())) for key in ("searches", "queries", "seconds", "errors")}

    def health(self) -> dict[str, dict[str, float]]:
        """Knowledge base -> searches, queries, errors, queries_per_second (over the last minute), p50_ms and p99_ms of a search."""
        now, found = time.time(), {}
        for kb, totals in self._totals.items():
            recent = self._recent[kb]
            p50, p99 = np.percentile([1e3 * seconds for _, _, seconds in recent] or [0.0], [50, 99]).tolist()
            in_window = sum(queries for when, queries, _ in recent if when > now - WINDOW_S)
            since = recent[0][0] if len(recent) == RECENT else self._started
            rate = in_window / min(WINDOW_S, max(now - since, 1e-3))
            counts = {key: totals[key] for key in ("searches", "queries", "errors")}
            found[kb] = {**counts, "queries_per_second": rate, "p50_ms": p50, "p99_ms": p99}
        return found

    def adopt(self, retriever: Any) -> None:
        self._retriever = retriever

    def retriever(self) -> Any:
        """None while the retrieval starts, and after a restart of this process."""
        return self._retriever
