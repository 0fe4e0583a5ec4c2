"""The tables of an evaluation: the methods side by side, what they ask, and how surely the first one differs from the others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from experiments.measures import excludes_zero
from experiments.result_tables import HEADINGS, LESS_IS_BETTER, failures, print_family_table, shown

COLUMNS = ("f1_recall", "exact_match", "f1", "routing_accuracy", "stop_accuracy", "retrievals_per_question", "hit_at_k")
COSTS = ("tokens_per_question", "seconds_per_question", "retrievals_per_right_answer", "tokens_per_right_answer")
TESTED = ("f1_recall", "exact_match", "routing_accuracy", "retrievals_per_question")


def print_comparison(console: Console, comparison: Mapping[str, Any], title: str) -> None:
    methods = comparison["methods"]
    first = methods[comparison["against"]]
    print_family_table(console, first, title=title)
    for line in failures({found["label"]: found for found in methods.values()}):
        console.print(line, style="yellow", soft_wrap=True, markup=False, highlight=False)
    console.print(_table("methods, same questions", methods, COLUMNS))
    shares = sorted({kb for found in methods.values() for kb in found["kb_shares"]})
    console.print(_costs(methods, shares))
    if comparison["differences"]:
        console.print(_differences(comparison, first["label"]))


def _table(title: str, methods: Mapping[str, Any], names: tuple[str, ...]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("method")
    for name in names:
        table.add_column(HEADINGS[name], justify="right")
    for found in methods.values():
        table.add_row(found["label"], *(shown(found["overall"][name]) for name in names))
    return table


def _costs(methods: Mapping[str, Any], kbs: list[str]) -> Table:
    table = _table("what they cost, and where they search", {}, COSTS)
    for kb in kbs:
        table.add_column(f"share of {kb}", justify="right")
    for found in methods.values():
        shares = (shown(found["kb_shares"].get(kb, {})) for kb in kbs)
        table.add_row(found["label"], *(shown(found["overall"][name]) for name in COSTS), *shares)
    return table


def _differences(comparison: Mapping[str, Any], first: str) -> Table:
    """Coloured where the interval excludes zero; p by permutation, corrected for the number of methods."""
    table = Table(title=f"{first} minus the others, paired; p corrected (Holm)", title_justify="left", title_style="bold")
    table.add_column("method")
    for name in TESTED:
        table.add_column(HEADINGS[name], justify="right")
        table.add_column("p", justify="right")
    for method, found in comparison["differences"].items():
        cells: list[Text | str] = []
        for name in TESTED:
            figure = found[name]
            known = figure["value"] is not None and figure["value"] == figure["value"]
            sure = known and excludes_zero(figure)
            better = known and (figure["value"] > 0) != (name in LESS_IS_BETTER)
            cells.append(Text(shown(figure, signed=True), style=("green" if better else "red") if sure else ""))
            p = figure["p_corrected"]
            cells.append("–" if p is None or p != p else f"{p:.3f}")
        table.add_row(comparison["methods"][method]["label"], *cells)
    return table
