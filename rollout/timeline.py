"""What a process did when: spans that add up to seconds, and that can be drawn."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

SHORTEST_GAP_S = 0.002
"""Spans of one name with less than this between them are one span: thousands of ticks would make a file that nobody can open."""


@dataclass(frozen=True)
class Span:
    name: str
    start: float
    """Seconds since the epoch, so that the spans of several processes lie on one axis."""
    end: float


@dataclass
class Timeline:
    spans: list[Span] = field(default_factory=list)
    """In the order of their ends; empty where `drawn` is False."""
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    """By name, since the last `take`."""
    drawn: bool = False
    """Whether spans are kept, not only added up."""

    @contextmanager
    def doing(self, name: str) -> Iterator[None]:
        """Whatever happens in the block, counted under this name."""
        began, start = time.perf_counter(), time.time()
        try:
            yield
        finally:
            self.did(name, start, time.perf_counter() - began)

    def did(self, name: str, start: float, seconds: float) -> None:
        """`start`: seconds since the epoch."""
        self.seconds[name] += seconds
        if not self.drawn:
            return
        last = self.spans[-1] if self.spans else None
        if last and last.name == name and 0 <= start - last.end < SHORTEST_GAP_S:
            self.spans[-1] = Span(name, last.start, start + seconds)
        else:
            self.spans.append(Span(name, start, start + seconds))

    def take(self) -> tuple[dict[str, float], list[Span]]:
        """Seconds and spans since the last call."""
        seconds, spans = dict(self.seconds), self.spans
        self.seconds, self.spans = defaultdict(float), []
        return seconds, spans
