"""A comparison as one HTML page that needs no other file."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from experiments.charts import interval_chart, line_chart
from experiments.comparison.found import Comparison
from experiments.comparison.runs import ComparedRun
from experiments.comparison.screen import p_value, verdict
from experiments.measures import MEASURES
from experiments.report_style import STYLE
from experiments.result_tables import HEADINGS
from experiments.tracking.plots import CURVES, points_of

MORE_COLOURS = """
:root { --series-5: #b5497f; --series-6: #8a7a1f; --series-7: #3d6b35; --series-8: #5a5fc7; --series-9: #a03c3c; }
@media (prefers-color-scheme: dark) { :root { --series-5: #ef93bf; --series-6: #d3c15d; --series-7: #94c98a; --series-8: #a6a9f5;
  --series-9: #e99a9a; } }
.mind { background: var(--card); border: 1px solid var(--line); border-left: 4px solid var(--series-1); border-radius: 12px; padding: 12px 18px;
  margin: 20px 0; }
.mind ul { margin: 6px 0; padding-left: 20px; } td.long { white-space: normal; overflow-wrap: anywhere; }
"""
DRAWN = 10
"""Runs that have a colour of their own; more are in the tables, and not drawn."""
FROM_ZERO_TO_ONE = frozenset({"reward", "outcome", "routing", "stop", "validation_f1_recall"})


def comparison_page(found: Comparison) -> str:
    title = "Comparison of " + ", ".join(run.name for run in found.runs[:4]) + (" and others" if len(found.runs) > 4 else "")
    parts = [f"<h1>{escape(title)}</h1>", _mind(found), _final(found), _differences(found), _settings(found), _curves(found), _runs(found)]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}{MORE_COLOURS}</style></head><body><main>{''.join(parts)}</main></body></html>\n"
    )


def _mind(found: Comparison) -> str:
    lines = "".join(f"<li>{escape(line)}</li>" for line in found.caveats)
    return f"<div class='mind'><b>Before you compare</b><ul>{lines}</ul></div>" if lines else ""


def _final(found: Comparison) -> str:
    measured = [run for run in found.runs if run.after]
    if not measured:
        return ""
    rows = "".join(
        f"<tr><td title='{escape(what)}'>{HEADINGS[name]}</td>{''.join(f'<td>{_cell(run.after.get(name))}</td>' for run in measured)}</tr>"
        for name, what in MEASURES.items()
        if any(name in run.after for run in measured)
    )
    known = {run.name: figure for run in measured if (figure := run.after.get("f1_recall", {})).get("value") is not None}
    chart = interval_chart({name: (f["value"], f["low"], f["high"]) for name, f in known.items()}, label="F1-Recall with 95 % intervals")
    return (
        f"<h2>Final figures</h2><p>Each run's best policy on its held-out questions; 95 % bootstrap intervals over questions.</p>{chart}"
        + _table(["measure", *(run.name for run in measured)], rows)
    )


def _differences(found: Comparison) -> str:
    paired = [difference for difference in found.differences if difference.figures]
    if not paired:
        return ""
    rows = "".join(
        f"<tr><td>{HEADINGS[name]}</td>{''.join(f'<td>{_change(name, d.figures.get(name))}</td>' for d in paired)}</tr>"
        for name in MEASURES
        if any(name in d.figures for d in paired)
    )
    first = escape(found.runs[0].name)
    heads = [f"{d.run.name} ({d.questions} questions)" for d in paired]
    return (
        f"<h2>Difference to {first}</h2><p>Paired: the same questions, question by question, so what questions share cancels out. 95 % bootstrap "
        "intervals; p by permutation, corrected for the number of runs (Holm). Coloured where the interval excludes zero.</p>"
        + _table(["measure", *heads], rows)
    )


def _settings(found: Comparison) -> str:
    rows = "".join(
        f"<tr><td>{escape(key)}</td>{''.join(f'<td class=long>{escape(str(value))}</td>' for value in values)}</tr>"
        for key, values in found.settings.items()
    )
    table = _table(["setting", *(run.name for run in found.runs)], rows) if rows else "<p>All settings are equal.</p>"
    only_some = "".join(f"<p class='soft'>{escape(line)}</p>" for line in found.only_some_know)
    return f"<h2>What they were told differently</h2>{table}{only_some}"


def _curves(found: Comparison) -> str:
    drawn = found.runs[:DRAWN]
    charts = [
        line_chart(
            {run.name: points_of(run.metrics, key) for run in drawn},  # a run without points keeps its colour, too
            label=label,
            low=0,
            high=1 if key in FROM_ZERO_TO_ONE else None,
        )
        for key, label in CURVES.items()
    ]
    left = f" The first {DRAWN} of {len(found.runs)} runs." if len(found.runs) > DRAWN else ""
    shown = "".join(chart for chart in charts if chart)
    return (
        f"<h2>How they learned</h2><p>Thin: each iteration. Thick: moving mean.{left}</p><div class='figures'>{shown}</div>"
        if shown
        else ""
    )


def _runs(found: Comparison) -> str:
    def row(run: ComparedRun) -> str:
        seconds = run.summary.get("seconds", {}).get("train")
        facts = [
            run.state,
            run.iterations,
            f"{run.summary.get('turns', 0):,}",
            f"{seconds:,.0f}" if seconds else "–",
            run.validated,
            run.run_id[:8] or "–",
        ]
        return f"<tr><td>{escape(run.name)}</td>{''.join(f'<td>{escape(str(fact))}</td>' for fact in facts)}</tr>"

    heads = ["run", "state", "iterations", "turns", "train s", "best on validation", "MLflow run"]
    return "<h2>The runs</h2>" + _table(heads, "".join(map(row, found.runs)))


def _table(headings: list[str], rows: str) -> str:
    heads = "".join(f"<th>{escape(heading)}</th>" for heading in headings)
    return f"<div class='scroll'><table><tr>{heads}</tr>{rows}</table></div>"


def _cell(figure: Mapping[str, Any] | None) -> str:
    if not figure or figure.get("value") is None:
        return "–"
    return f"{_number(figure['value'])} <small>[{_number(figure['low'])}, {_number(figure['high'])}]</small>"


def _change(name: str, figure: Mapping[str, Any] | None) -> str:
    if not figure:
        return "–"
    kind = {"better": "good", "worse": "bad", "": "soft"}[verdict(name, figure)]
    p = f", p {p_value(figure)}" if "p_corrected" in figure else ""
    return f"<span class='{kind}'>{_number(figure['value'], '+')}</span> <small>[{_number(figure['low'])}, {_number(figure['high'])}]{p}</small>"


def _number(value: float, sign: str = "") -> str:
    return f"{value:{sign},.0f}" if abs(value) >= 100 else f"{value:{sign}.3f}"
