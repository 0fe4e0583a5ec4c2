"""Counts what all processes searched, in one place."""

from __future__ import annotations


class SearchLog:
    def __init__(self) -> None:
        self._totals = {"searches": 0.0, "queries": 0.0, "seconds": 0.0, "errors": 0.0}

    def record(self, queries: int, seconds: float, errors: int) -> None:
        for key, value in (("searches", 1), ("queries", queries), ("seconds", seconds), ("errors", errors)):
            self._totals[key] += value

    def totals(self) -> dict[str, float]:
        return dict(self._totals)
