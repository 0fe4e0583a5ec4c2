"""What a process did when: spans that add up to seconds, and that can be drawn."""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

SHORTEST_GAP_S = 0.002
"""Spans of one name with less than this between them are one span: thousands of ticks would make a file that nobody can open."""

REMEMBERED = 256
"""Changes of what a process is doing: some tens of iterations."""


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
    changes: deque[tuple[float, str]] = field(default_factory=lambda: deque(maxlen=REMEMBERED))
    """The last times (seconds since the epoch) that `doing` began something, or ended it: then with an empty name."""
    broken: tuple[float, str] = (0.0, "")
    """When, and in what, `doing` last ended with an exception."""

    @contextmanager
    def doing(self, name: str) -> Iterator[None]:
        """Whatever happens in the block, counted under this name."""
        began, start = time.perf_counter(), time.time()
        self.changes.append((start, name))
        try:
            yield
        except BaseException:
            self.broken = (time.time(), name)
            raise
        finally:
            self.did(name, start, time.perf_counter() - began)
            self.changes.append((time.time(), ""))

    def at(self, when: float) -> str:
        """What `doing` was busy with then (seconds since the epoch), as far as it is remembered; empty: nothing."""
        return next((name for start, name in reversed(self.changes) if start <= when), "")

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
