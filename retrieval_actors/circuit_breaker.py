"""Keeps a knowledge base that does not answer from holding up every episode: after some failures in a row it is not asked for a while.

M. Nygard, Release It! (2007), chapter 5.3: closed (asked), open (not asked), half open (one search is let through to see).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass
class CircuitBreaker:
    """One for each knowledge base in every process that searches. A copy in another process starts closed: it counts what it sees itself,
    on its own clock."""

    failures_to_open: int
    cooldown_s: float
    clock: Callable[[], float] = time.monotonic
    failures: int = 0
    """In a row."""
    opened_at: float = 0.0
    trying: bool = False
    """One search has been let through since the cool-down, and has not come back."""

    def __reduce__(self) -> tuple[type[CircuitBreaker], tuple[int, float, Callable[[], float]]]:
        return CircuitBreaker, (self.failures_to_open, self.cooldown_s, self.clock)

    def allows(self) -> bool:
        """May a search be sent? After the cool-down one may, and the others when it has come back."""
        if self.failures < self.failures_to_open:
            return True
        if self.trying or self.seconds_left() > 0:
            return False
        self.trying = True
        return True

    def record(self, answered: bool) -> None:
        self.trying = False
        self.failures = 0 if answered else self.failures + 1
        if self.failures >= self.failures_to_open:
            self.opened_at = self.clock()

    def seconds_left(self) -> float:
        """Of the cool-down."""
        return max(0.0, self.opened_at + self.cooldown_s - self.clock())
