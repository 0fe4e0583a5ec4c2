"""Results as tables for the terminal: before and after by question family, and ways of routing side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from experiments.measures import MEASURES, excludes_zero
from rollout.methods.registry import label_of

HEADINGS = {
    "f1_recall": "F1-Recall",
    "exact_match": "exact match",
    "routing_accuracy": "routing",
    "stop_accuracy": "stop",
    "premature_stop_rate": "premature stop",
    "f1": "F1",
    "retrievals_per_question": "retrievals",
    "hit_at_k": "hit@k",
    "format_rate": "format",
    "tokens_per_question": "tokens",
    "seconds_per_question": "seconds",
    "retrievals_per_right_answer": "retrievals per right answer",
    "tokens_per_right_answer": "tokens per right answer",
}
BY_FAMILY = (
    "f1_recall",
    "exact_match",
    "routing_accuracy",
    "stop_accuracy",
    "premature_stop_rate",
    "retrievals_per_question",
    "format_rate",
)
"""Measures that have a column in the table of families."""
LESS_IS_BETTER = frozenset(
    {
        *("retrievals_per_question", "premature_stop_rate", "tokens_per_question", "seconds_per_question"),
        *("retrievals_per_right_answer", "tokens_per_right_answer"),
    }
)

Figure = Mapping[str, Any]
"""{"value", "low", "high"} of one measure, None where nothing could be measured."""


def shown(figure: Figure, signed: bool = False) -> str:
    """`.912 ±.021`, with the half width of the interval."""
    if figure.get("value") is None or figure["value"] != figure["value"]:
        return "–"
    half = (figure["high"] - figure["low"]) / 2
    if abs(figure["value"]) >= 100:
        return f"{figure['value']:{'+' if signed else ''}.0f} ±{half:.0f}"
    return f"{figure['value']:{'+' if signed else ''}.3f} ±{half:.3f}"


def before_after_table(
    before: Mapping[str, Figure], after: Mapping[str, Figure], difference: Mapping[str, Figure], questions: int
) -> Table:
    """One row a measure, with the paired difference; differences whose interval excludes zero are coloured."""
    table = Table(title=f"before and after, {questions} held-out questions, 95 % intervals", title_justify="left", title_style="bold")
    for heading in ("measure", "before", "after", "difference"):
        table.add_column(heading, justify="left" if heading == "measure" else "right")
    for name in MEASURES:
        change = difference[name]
        style = ""
        if change.get("value") is not None and change["value"] == change["value"] and excludes_zero(change):
            style = "green" if (change["value"] > 0) != (name in LESS_IS_BETTER) else "red"
        table.add_row(HEADINGS[name], shown(before[name]), shown(after[name]), Text(shown(change, signed=True), style=style))
    return table


def family_table(before: Mapping[str, Any], after: Mapping[str, Any]) -> Table:
    """F1-Recall, routing and retrievals of each question family, before -> after."""
    table = Table(title="by question family, before → after", title_justify="left", title_style="bold")
    table.add_column("family")
    table.add_column("questions", justify="right")
    for name in ("f1_recall", "routing_accuracy", "stop_accuracy", "retrievals_per_question"):
        table.add_column(HEADINGS[name], justify="right")
    for family, then in before["by_family"].items():
        now = after["by_family"][family]
        cells = (
            f"{_value(then[name])} → {_value(now[name])}"
            for name in ("f1_recall", "routing_accuracy", "stop_accuracy", "retrievals_per_question")
        )
        table.add_row(family or "all", str(then["questions"]), *cells)
    return table


def print_family_table(console: Console, summary: Mapping[str, Any], title: str) -> None:
    """Every measure of one evaluation, overall and by family."""
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("family")
    table.add_column("questions", justify="right")
    for name in BY_FAMILY:
        table.add_column(HEADINGS[name], justify="right")
    for family, figures in summary["by_family"].items():
        table.add_row(family or "-", str(figures["questions"]), *(_value(figures[name]) for name in BY_FAMILY))
    table.add_section()
    table.add_row("overall", str(summary["questions"]), *(shown(summary["overall"][name]) for name in BY_FAMILY), style="bold")
    console.print(table)


def failures(measured: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A line for each evaluation, by its name, in which something went wrong; summaries of earlier versions do not say."""
    lines = []
    for name, found in measured.items():
        failed, searches = found.get("failed_episodes", 0), found.get("search_errors", 0)
        if failed or searches:
            lines.append(f"warning, {name}: {failed} episodes failed and count as wrong; {searches} searches failed")
    return lines


def methods_table(methods: Mapping[str, Mapping[str, Figure]]) -> Table:
    """One row for each way of routing."""
    table = Table(title="ways of routing, same questions", title_justify="left", title_style="bold")
    table.add_column("method")
    names = (
        "f1_recall",
        "exact_match",
        "f1",
        "routing_accuracy",
        "stop_accuracy",
        "retrievals_per_question",
        "hit_at_k",
        "tokens_per_question",
    )
    for name in names:
        table.add_column(HEADINGS[name], justify="right")
    for method, figures in methods.items():
        table.add_row(label_of(method), *(shown(figures[name]) for name in names))
    return table


def print_results(console: Console, summary: Mapping[str, Any]) -> None:
    """All tables of a finished run."""
    before, after = summary["before"], summary["after"]
    console.print(before_after_table(before["overall"], after["overall"], summary["difference"], before["questions"]))
    console.print(family_table(before, after))
    others = {label_of(name): found for name, found in summary["baselines"].items()}
    for line in failures({"before": before, "after": after} | others):
        console.print(line, style="yellow", soft_wrap=True, markup=False, highlight=False)
    if summary["baselines"]:
        others = {name: other["overall"] for name, other in summary["baselines"].items()}
        console.print(methods_table({"policy": after["overall"]} | others))


def _value(figure: Figure) -> str:
    value = figure.get("value")
    return "–" if value is None or value != value else f"{value:.2f}"
