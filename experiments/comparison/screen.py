"""A comparison as tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from experiments.comparison.found import Comparison
from experiments.measures import excludes_zero
from experiments.result_tables import HEADINGS, LESS_IS_BETTER, shown

COLUMNS = ("f1_recall", "exact_match", "routing_accuracy", "stop_accuracy", "retrievals_per_question")
"""Measures that have a column; the page shows all of them."""


def print_comparison(console: Console, found: Comparison) -> None:
    console.print(_runs(found))
    if any(difference.figures for difference in found.differences):
        console.print(_differences(found))
    if found.settings:
        console.print(_settings(found))
    for line in found.only_some_know:
        console.print(line, style="dim", soft_wrap=True, highlight=False)
    for line in found.caveats:
        console.print(f"mind: {line}", style="yellow", soft_wrap=True, markup=False, highlight=False)


def _runs(found: Comparison) -> Table:
    table = _table("runs, final figures on held-out questions, ± half a 95 % interval", "run")
    for heading in ("state", "iterations", "train s", "best on validation", *(HEADINGS[name] for name in COLUMNS)):
        table.add_column(heading, justify="right")
    for run in found.runs:
        seconds = run.summary.get("seconds", {}).get("train")
        row = [run.name, run.state, str(run.iterations), f"{seconds:,.0f}" if seconds else "–", run.validated]
        table.add_row(*row, *(shown(run.after.get(name, {})) for name in COLUMNS))
    return table


def _differences(found: Comparison) -> Table:
    """Coloured where the interval excludes zero."""
    table = _table(f"minus {found.runs[0].name}, paired question by question; p by permutation, corrected (Holm)", "run")
    table.add_column("questions", justify="right")
    for name in COLUMNS:
        table.add_column(HEADINGS[name], justify="right")
        table.add_column("p", justify="right")
    for difference in found.differences:
        cells: list[str | Text] = []
        for name in COLUMNS:
            figure = difference.figures.get(name)
            cells += [Text(shown(figure, signed=True), style=STYLES[verdict(name, figure)]), p_value(figure)] if figure else ["–", "–"]
        table.add_row(difference.run.name, str(difference.questions), *cells)
    return table


STYLES = {"better": "green", "worse": "red", "": ""}


def verdict(name: str, figure: Mapping[str, Any]) -> str:
    """`better`, `worse`, or empty where the interval holds zero."""
    if not excludes_zero(figure):
        return ""
    return "better" if (figure["value"] > 0) != (name in LESS_IS_BETTER) else "worse"


def p_value(figure: Mapping[str, Any]) -> str:
    p = figure.get("p_corrected")
    return "–" if p is None or p != p else ("<.001" if p < 0.001 else f"{p:.3f}")


def _settings(found: Comparison) -> Table:
    table = _table("settings in which they differ", "setting")
    for run in found.runs:
        table.add_column(run.name, justify="right", overflow="fold")
    for key, values in found.settings.items():
        table.add_row(key, *("–" if value is None else str(value) for value in values))
    return table


def _table(title: str, first: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column(first, overflow="fold")
    return table
