"""The circuit breaker: a knowledge base that failed several times in a row is not searched for a while."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass
class CircuitBreaker:
    """After the cool-down one search is sent as a trial (M. Nygard, Release It!, 2007, chapter 5.3). A copy in another process starts closed."""

    failures_to_open: int = 3  # in a row, seen by one process
    cooldown_s: float = 30.0
    clock: Callable[[], float] = time.monotonic
    failures: int = 0
    opened_at: float = 0.0
    on_trial: bool = False

    def __reduce__(self) -> tuple[type[CircuitBreaker], tuple[int, float, Callable[[], float]]]:
        return CircuitBreaker, (self.failures_to_open, self.cooldown_s, self.clock)

    def allows(self) -> bool:
        """Whether a search may be sent. If so, call `record` with its outcome."""
        if self.failures < self.failures_to_open:
            return True
        if self.on_trial or self.seconds_left() > 0:
            return False
        self.on_trial = True
        return True

    def record(self, answered: bool | None) -> None:
        """`answered`: None for an error of the program or the query, which does not count as a failure."""
        self.on_trial = False
        if answered is None:
            return
        self.failures = 0 if answered else self.failures + 1
        if self.failures >= self.failures_to_open:
            self.opened_at = self.clock()

    def seconds_left(self) -> float:
        """Seconds left of the cool-down."""
        return max(0.0, self.opened_at + self.cooldown_s - self.clock())
