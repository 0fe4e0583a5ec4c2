"""The results of a benchmark: lines while it runs, then a table and `bench/NAME.json`."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.table import Table
from rich.text import Text

from experiments.command_line.terminal import Console
from experiments.tracking.fingerprints import git_commit, machine
from experiments.tracking.heartbeat import read_json
from experiments.tracking.run_folder import write_whole

FOLDER = Path("bench")


@dataclass(frozen=True)
class BenchResult:
    """One figure of a benchmark."""

    name: str
    value: float
    unit: str
    baseline: float | None = None
    """Measured in the same run."""
    ratio: float | None = None
    """value / baseline."""
    bar: float | None = None
    """The least `ratio` (without a baseline: `value`) that is wanted; the most, where the name says "at most"."""
    holds: bool | None = None
    """None without a bar, and where hardware or data is missing."""

    @classmethod
    def of(
        cls, name: str, value: float, unit: str, baseline: float | None = None, bar: float | None = None, at_most: bool = False
    ) -> BenchResult:
        ratio = value / baseline if baseline else None
        reached = ratio if ratio is not None else value
        holds = None if bar is None else bool(reached <= bar if at_most else reached >= bar)
        return cls(f"{name} (at most)" if at_most else name, value, unit, baseline, ratio, bar, holds)


def measured_rows(name: str) -> list[BenchResult]:
    """What `bench/NAME.json` holds, if this commit measured it on this machine."""
    found = read_json(FOLDER / f"{name}.json")
    same = (found.get("machine"), found.get("commit")) == (machine(), git_commit())
    return [BenchResult(**row) for row in found["rows"]] if same else []


def measure_rows(name: str, measured: Iterable[BenchResult], console: Console) -> None:
    """Writes `bench/NAME.json` after every row."""
    began, rows, where = time.perf_counter(), list[BenchResult](), {"machine": machine(), "commit": git_commit()}
    FOLDER.mkdir(exist_ok=True)
    for row in measured:
        rows.append(row)
        console.print(f"{time.perf_counter() - began:5.0f} s  {row.name}: {row.value:,.4g} {row.unit}", style="dim", highlight=False)
        plain = [{key: None if value != value else value for key, value in asdict(row).items()} for row in rows]
        found = {**where, "seconds": time.perf_counter() - began, "rows": plain}
        write_whole(FOLDER / f"{name}.json", json.dumps(found, indent=2, allow_nan=False) + "\n")
    table = Table(title=f"{name} ({FOLDER / name}.json)", title_justify="left", title_style="bold")
    for heading in ("figure", "value", "baseline", "ratio", "bar", ""):
        table.add_column(heading, justify="left" if heading == "figure" else "right")
    for row in rows:
        held = "" if row.holds is None else Text("holds", style="green") if row.holds else Text("missed", style="red")
        beside = ("–" if x is None else f"{x:,.2f}" if abs(x) >= 0.1 else f"{x:.2g}" for x in (row.baseline, row.ratio, row.bar))
        numbers = (f"{row.value:,.4g} {row.unit}", *beside)
        table.add_row(row.name, *numbers, held)
    console.print(table)
