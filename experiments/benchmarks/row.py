"""One figure of a benchmark."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """Its value, the baseline it was measured against in the same run, their ratio, the bar it should reach, and whether it does. A missed
    bar is shown, never hidden."""

    name: str
    value: float
    unit: str
    baseline: float | None = None
    ratio: float | None = None
    """value / baseline."""
    bar: float | None = None
    """What `ratio` (or `value`, without a baseline) should reach, or, where the name says "at most", not exceed."""
    holds: bool | None = None
    """None where there is no bar, or the hardware or data is absent."""

    @classmethod
    def of(cls, name: str, value: float, unit: str, baseline: float | None = None, bar: float | None = None, at_most: bool = False) -> Row:
        ratio = value / baseline if baseline else None
        reached = ratio if ratio is not None else value
        holds = None if bar is None else bool(reached <= bar if at_most else reached >= bar)
        return cls(f"{name} (at most)" if at_most else name, value, unit, baseline, ratio, bar, holds)
