"""`python -m experiments.bench NAME [quick=true]`: measure one thing on this machine; a table, and `bench/NAME.json`.

retrieval   exact search, actors, growth, 1M vectors, an HTTP server; then recall on real questions
rollout     sampling siblings together
learner     shared prefixes, DeepSpeed against a bare loop, its stages, a GPU where there is one;
            weights to the rollout workers and to the disk
serve       the service: overhead, throughput, and what it survives
scale       the driver of a cluster of 1 to 64 nodes, simulated; bytes; weights to many receivers

A row is one figure, with what it was measured against in the same run (`benchmarks/row.py`).
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from experiments.benchmarks.learner import learner_rows
from experiments.benchmarks.retrieval import retrieval_rows
from experiments.benchmarks.rollout import rollout_rows
from experiments.benchmarks.row import Row
from experiments.benchmarks.scale import scale_rows
from experiments.benchmarks.serve import serve_rows
from experiments.cluster import QUIET
from experiments.command_settings import read_settings
from experiments.config import RunConfigError
from experiments.provenance import git_commit, machine

FOLDER = Path("bench")


@dataclass
class BenchSettings:
    quick: bool = False
    """Smaller, in seconds instead of minutes; the figures are rougher."""


BENCHMARKS: dict[str, Callable[[bool], Iterator[Row]]] = {
    "retrieval": retrieval_rows,
    "rollout": rollout_rows,
    "learner": learner_rows,
    "serve": serve_rows,
    "scale": scale_rows,
}


def main(arguments: list[str]) -> int:
    for key, value in QUIET.items():  # before a model is loaded, here or in a process that is started from here
        os.environ.setdefault(key, value)
    console = Console(width=None if sys.stdout.isatty() else 140)
    try:
        name = arguments[0] if arguments and "=" not in arguments[0] else ""
        if name not in BENCHMARKS:
            raise RunConfigError(
                f"which benchmark? {name!r} is none of {', '.join(BENCHMARKS)}; python -m experiments.bench NAME [quick=true]"
            )
        settings = read_settings(BenchSettings, arguments[1:])
        began = time.perf_counter()
        rows = []
        for row in BENCHMARKS[name](settings.quick):  # one by one: what takes minutes shows that it goes on
            rows.append(row)
            console.print(f"{time.perf_counter() - began:5.0f} s  {row.name}: {row.value:,.4g} {row.unit}", style="dim", highlight=False)
    except RunConfigError as error:
        console.print(f"error: {error}", style="red", soft_wrap=True, markup=False)
        return 2
    found = {
        "machine": machine(),
        "commit": git_commit(),
        "seconds": time.perf_counter() - began,
        "rows": [{key: None if value != value else value for key, value in dataclasses.asdict(row).items()} for row in rows],
    }
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / f"{name}.json").write_text(json.dumps(found, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    (FOLDER / f"{name}.md").write_text(_markdown(found, rows), encoding="utf-8")
    console.print(_table(name, rows))
    return 0


def _markdown(found: dict[str, Any], rows: list[Row]) -> str:
    """The table as docs show it."""
    lines = ["| figure | value | against | ratio | bar | |", "|---|---|---|---|---|---|"]
    for row in rows:
        held = "" if row.holds is None else "holds" if row.holds else "**missed**"
        value = "–" if row.value != row.value else f"{row.value:,.4g} {row.unit}".strip()
        numbers = ("" if number is None else f"{number:,.3g}" for number in (row.baseline, row.ratio, row.bar))
        lines.append(f"| {' | '.join([row.name, value, *numbers, held])} |")
    commit, _, changes = (found["commit"] or "unknown").partition("+")
    made_by = f"commit `{commit[:10]}`{' with changes' if changes else ''}"
    where = ", ".join(f"{key} {value}" for key, value in found["machine"].items())
    return "\n".join(lines) + f"\n\n{where}; {time.strftime('%d %B %Y')}, {made_by}, {found['seconds']:.0f} s.\n"


def _table(name: str, rows: list[Row]) -> Table:
    table = Table(title=f"{name} ({FOLDER / name}.json)", title_justify="left", title_style="bold")
    for heading in ("figure", "value", "baseline", "ratio", "bar", ""):
        table.add_column(heading, justify="left" if heading == "figure" else "right")
    for row in rows:
        held = "" if row.holds is None else "[green]holds" if row.holds else "[red]missed"
        numbers = (f"{row.value:,.4g} {row.unit}", *(f"{x:,.2f}" if x is not None else "–" for x in (row.baseline, row.ratio, row.bar)))
        table.add_row(row.name, *numbers, held)
    return table


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
