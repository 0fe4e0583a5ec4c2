"""The timeline of an iteration in the Trace Event format: it opens in ui.perfetto.dev and chrome://tracing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rollout.timeline import Span


def chrome_trace(timelines: Mapping[str, Sequence[Span]]) -> dict[str, Any]:
    """One row for each timeline, in their order; times in microseconds since the first span began. `driver` gets a span around all of its own,
    `iteration`. (Trace Event Format, Google 2016: complete events `X`, names of rows as metadata `M`.)"""
    begin = min((span.start for spans in timelines.values() for span in spans), default=0.0)
    events: list[dict[str, Any]] = []
    for row, (name, spans) in enumerate(timelines.items(), start=1):
        events.append({"name": "thread_name", "ph": "M", "pid": 1, "tid": row, "args": {"name": name}})
        if name == "driver" and spans:
            spans = [Span("iteration", min(span.start for span in spans), max(span.end for span in spans)), *spans]
        for span in sorted(spans, key=lambda span: (span.start, -span.end)):
            start, end = round(1e6 * (span.start - begin)), round(1e6 * (span.end - begin))  # both rounded: spans that nest go on nesting
            events.append({"name": span.name, "ph": "X", "pid": 1, "tid": row, "ts": start, "dur": end - start})
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def write_trace(file: Path, timelines: Mapping[str, Sequence[Span]]) -> None:
    file.write_text(json.dumps(chrome_trace(timelines), separators=(",", ":")), encoding="utf-8")
