"""What a process did when: spans, their sums in seconds, and a file of them for ui.perfetto.dev or chrome://tracing."""

from __future__ import annotations

import json
import time
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

SHORTEST_GAP_S = 0.002  # spans of one name with a shorter gap between them are merged, to keep trace files small


class Span(NamedTuple):
    name: str
    start: float  # seconds since the epoch
    end: float


@dataclass
class Timeline:
    spans: list[Span] = field(default_factory=list)  # ordered by end; empty unless `drawn`
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))  # by name, since the last `take`
    drawn: bool = False  # whether spans are kept, not only summed
    changes: deque[tuple[float, str]] = field(default_factory=lambda: deque(maxlen=256))
    """(seconds since the epoch, name of the block that began; empty if one ended), for the last tens of iterations."""
    failed: tuple[float, str] = (0.0, "")  # (seconds since the epoch, name) of the last block that ended with an exception

    @contextmanager
    def doing(self, name: str) -> Iterator[None]:
        began, start = time.perf_counter(), time.time()
        self.changes.append((start, name))
        try:
            yield
        except BaseException:
            self.failed = (time.time(), name)
            raise
        finally:
            self.did(name, start, time.perf_counter() - began)
            self.changes.append((time.time(), ""))

    def at(self, when: float) -> str:
        """The block that was running then (seconds since the epoch); empty: none, or too long ago."""
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
        seconds, spans = dict(self.seconds), self.spans
        self.seconds, self.spans = defaultdict(float), []
        return seconds, spans


def chrome_trace(timelines: Mapping[str, Sequence[Span]]) -> dict[str, Any]:
    """Trace Event format: one row for each timeline, in microseconds since the first span; `driver` gets a span `iteration` around its own."""
    begin = min((span.start for spans in timelines.values() for span in spans), default=0.0)
    events: list[dict[str, Any]] = []
    for row, (name, spans) in enumerate(timelines.items(), start=1):
        events.append({"name": "thread_name", "ph": "M", "pid": 1, "tid": row, "args": {"name": name}})
        if name == "driver" and spans:
            spans = [Span("iteration", min(span.start for span in spans), max(span.end for span in spans)), *spans]
        for span in sorted(spans, key=lambda span: (span.start, -span.end)):
            start, end = round(1e6 * (span.start - begin)), round(1e6 * (span.end - begin))  # both rounded, so nested spans stay nested
            events.append({"name": span.name, "ph": "X", "pid": 1, "tid": row, "ts": start, "dur": end - start})
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def write_trace(file: Path, timelines: Mapping[str, Sequence[Span]]) -> None:
    file.write_text(json.dumps(chrome_trace(timelines), separators=(",", ":")), encoding="utf-8")
