"""Tables to paste into a paper: several data sets with their average, as others report them, and any table as Markdown and as LaTeX."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from experiments.command_line.terminal import markdown_cell, visible
from experiments.evaluation.result_tables import HEADINGS, known, results_table, shown
from experiments.evaluation.significance import Interval

AVERAGED = ("exact_match", "f1", "f1_recall")
LATEX = str.maketrans(
    {character: f"\\{character}" for character in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "–": "--", "→": r"$\to$"}
    | {"<": "$<$", ">": "$>$", "|": r"\textbar{}"}
)


def average(results: Sequence[Interval | None]) -> Interval:
    """The mean of the values of several data sets, each with the same weight; empty where one was not measured. As the sets are independent, the
    distance from the mean to each end of its interval is the root of the summed squares of theirs, over their number."""
    measured = [result for result in results if result is not None and known(result)]
    if not measured or len(measured) < len(results):
        return {}
    value = math.fsum(result["value"] for result in measured) / len(measured)
    below, above = (math.hypot(*(result[end] - result["value"] for result in measured)) / len(measured) for end in ("low", "high"))
    return {"value": value, "low": value - below, "high": value + above}


def averages(comparisons: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Interval]]:
    """Method -> metric -> average over the data sets. `comparisons`: data set -> what its evaluation found."""
    found = [comparison["methods"] for comparison in comparisons.values()]
    names = dict.fromkeys(name for methods in found for name in methods)
    return {
        name: {metric: average([methods[name]["overall"][metric] if name in methods else None for methods in found]) for metric in AVERAGED}
        for name in names
    }


def data_set_tables(comparisons: Mapping[str, Mapping[str, Any]]) -> list[Table]:
    """For each metric a row for each method, a column for each data set, and the average."""
    tables, columns = [], [f"{name} ({found['questions']})" for name, found in comparisons.items()]
    labels = {name: method["label"] for found in comparisons.values() for name, method in found["methods"].items()}
    means = averages(comparisons)
    for metric in AVERAGED:
        table = results_table(f"{HEADINGS[metric]}, 95 % intervals; average: mean of the data sets", "method", [*columns, "average"])
        for name, label in labels.items():
            cells = [found["methods"].get(name, {}).get("overall", {}).get(metric) for found in comparisons.values()]
            table.add_row(label, *map(shown, cells), shown(means[name][metric]))
        tables.append(table)
    return tables


def write_tables(folder: Path, tables: Sequence[Table]) -> list[Path]:
    """Writes results.md and results.tex."""
    files = [folder / "results.md", folder / "results.tex"]
    files[0].write_text("\n".join(map(markdown, tables)), encoding="utf-8")
    files[1].write_text("% \\usepackage{booktabs}\n\n" + "\n".join(map(latex, tables)), encoding="utf-8")
    return files


def markdown(table: Table) -> str:
    header, *rows = [[markdown_cell(cell) for cell in row] for row in _rows(table)]
    marks = ["---", *["---:"] * (len(header) - 1)]
    return f"**{visible(_plain(table.title))}**\n\n" + "".join(f"| {' | '.join(row)} |\n" for row in (header, marks, *rows))


def latex(table: Table) -> str:
    """With the rules of booktabs; text is escaped."""
    header, *rows = [" & ".join(visible(cell).translate(LATEX) for cell in row) + r" \\" for row in _rows(table)]
    ruled = [f"{row}{chr(10)}\\midrule" if line.end_section else row for row, line in zip(rows, table.rows, strict=True)]
    caption = visible(_plain(table.title)).translate(LATEX)
    inside = ["\\toprule", header, "\\midrule", *ruled, "\\bottomrule"]
    lines = [
        "\\begin{table}",
        "\\centering",
        f"\\caption{{{caption}}}",
        f"\\begin{{tabular}}{{l{'r' * (len(table.columns) - 1)}}}",
        *inside,
    ]
    return "\n".join([*lines, "\\end{tabular}", "\\end{table}", ""])


def _rows(table: Table) -> Iterator[list[str]]:
    """The header, then every row, as text without styles."""
    yield [_plain(column.header) for column in table.columns]
    yield from (list(map(_plain, row)) for row in zip(*(column.cells for column in table.columns), strict=True))


def _plain(cell: Any) -> str:
    return " ".join((cell.plain if isinstance(cell, Text) else str(cell)).split())
