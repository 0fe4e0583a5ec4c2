"""The sections of a report: head, before and after, confusion, other ways of routing, question families, curves, seconds."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from html import escape
from typing import Any

from rich.table import Table

from experiments.evaluation.gaps import gaps_table
from experiments.evaluation.metrics import MALFORMED, STOP, Confusion, is_right
from experiments.evaluation.result_tables import (
    before_after_table,
    confidence_table,
    failures_of_run,
    family_table,
    gate_table,
    routing_table,
)
from experiments.report.charts import Panel, Points, inline_svg, line_charts, points_of

Summary = Mapping[str, Any]  # summary.json of a run
USE, SECONDS = "use_", "seconds_"  # Prefixes in metrics.jsonl: shares of what plan turns chose (`use_stop`), and seconds of phases
ENTROPY = "kb_entropy_"  # Prefix in metrics.jsonl: entropy of what plan turns chose, by what they needed
ORDER = ("text", "text_image", "table")  # Knowledge bases that have the same colours in every report; others follow
GAPS_SHOWN = 30  # clusters
Rows = Sequence[Mapping[str, Any]]  # Lines of metrics.jsonl


def head(summary: Summary, name: str) -> str:
    facts = [
        time.strftime("%d %B %Y", time.localtime(summary["finished"])) if "finished" in summary else "",
        f"{summary.get('iterations', 0)} iterations",
        f"{summary.get('turns', 0):,} turns, {summary.get('sampled_tokens', 0):,} tokens",
        f"commit {str(summary.get('git_commit') or 'unknown')[:10]}",
        "" if compared(summary) else "not measured after training: it was stopped, failed, or is still going on",
    ]
    return f"<h1>{escape(name)}</h1><p class='soft facts'>{escape(' · '.join(filter(None, facts)))}</p>"


def warnings(summary: Summary) -> str:
    """Signs of collapse. Empty where the summary has no `warnings`."""
    if "warnings" not in summary:
        return ""
    lines = [
        f"<b>iteration {found['iteration']}: {escape(found['name'])} {found['found']:.4g}</b> (threshold {found['threshold']:g}): "
        f"{escape(found['cause'])}; try {escape(found['advice'])}"
        for found in summary["warnings"]
    ]
    return f"<h2 id='warnings'>Warnings</h2>{_list(lines) or '<p>No sign of collapse.</p>'}"


def before_after(summary: Summary) -> str:
    if not compared(summary):
        return ""
    return (
        "<h2 id='results'>Before and after</h2><p>Behind ± half of a 95 % bootstrap interval over questions. The difference is paired; it has a "
        "colour where its interval excludes zero.</p>"
        + html_table(before_after_table(summary))
        + _list([escape(line) for line in failures_of_run(summary)])
    )


def confusion_section(before: Confusion, after: Confusion, kbs: Sequence[str]) -> str:
    """Two tables of the same shape. Empty where no gold steps are known."""
    if not before and not after:
        return ""
    golds = sorted({gold for counts in (before, after) for gold, _ in counts}, key=lambda gold: (gold == STOP, " or " in gold, gold))
    seen = {choice for counts in (before, after) for _, choice in counts}
    choices = [*(kb for kb in kbs if kb in seen or kb in golds), STOP, *([MALFORMED] if MALFORMED in seen else [])]
    shown = [_confusion(counts, golds, choices, f"{when} training") for counts, when in ((before, "before"), (after, "after")) if counts]
    return (
        "<h2 id='routing'>Where the plan turns went</h2><p>Rows: the knowledge bases that could be asked for what was still missing, or stop where "
        "nothing was. Columns: what was chosen. Share of the row and number of plan turns; right choices are framed.</p>"
        f"<div class='figures'>{''.join(shown)}</div>"
    )


def methods_and_families(summary: Summary) -> str:
    if not compared(summary):
        return ""
    note = "<p>The same held-out questions. Without a note, the policy is the trained one.</p>"
    methods = f"<h2>Against other ways of routing</h2>{note}{html_table(routing_table(summary))}" if summary.get("baselines") else ""
    return f"{methods}<h2>By question family</h2><p>Before → after.</p>{html_table(family_table(summary))}"


def gate_section(found: Mapping[str, Any]) -> str:
    """`found`: gate.yaml; empty where the policy was never tested."""
    if not found:
        return ""
    note = "Of the questions that it answers right with healthy knowledge bases. <code>r1-router gate</code> asked them again."
    title = f"{found['data']}, {found['date']}, commit {str(found['commit'])[:10]}"
    table = html_table(gate_table(found, title))
    return f"<h2 id='gate'>With broken knowledge bases</h2><p>{note} {escape(title)}.</p><div class='texts'>{table}</div>"


def gaps_section(found: Mapping[str, Any]) -> str:
    """`found`: gaps.json; empty where `r1-router gaps` was not run."""
    if not found:
        return ""
    table = gaps_table(found, GAPS_SHOWN)
    return f"<h2 id='gaps'>What the knowledge bases lack</h2><p>{escape(str(table.title))}.</p><div class='texts'>{html_table(table)}</div>"


def confidence_section(summary: Summary) -> str:
    """Empty where no answer has a confidence."""
    found = {when: summary[when]["confidence"] for when in ("before", "after") if "confidence" in summary.get(when, {})}
    if not found:
        return ""
    note = "Risk: share of wrong answers among the most confident ones. Every answer to a question outside all knowledge bases is wrong."
    chart = inline_svg(risk_coverage(found), "Risk over coverage")
    return f"<h2 id='confidence'>Confidence</h2><p>{note}</p>{html_table(confidence_table(found))}<figure>{chart}</figure>"


def risk_coverage(found: Mapping[str, Mapping[str, Any]]) -> str:
    """SVG of risk over coverage. `found`: name of a line -> what evaluation/confidence.py measured."""
    lines = {name: measured["curve"] for name, measured in found.items()}
    return line_charts([Panel("Risk over coverage", lines, y="share of wrong answers", x="share of questions answered", low=0.0)], "risk")


def curves_section(rows: Rows, ceiling: float | None = None) -> str:
    """Empty without an iteration. `ceiling`: share of the held-out questions that can be answered."""

    def panel(title: str, *metrics: str, high: float | None = None, low: float | None = 0.0, y: str = "") -> Panel:
        return Panel(title, {name: points for name in metrics if (points := points_of(rows, name))}, y=y, low=low, high=high)

    validation = ("validation_f1_recall", "validation_routing_accuracy", "validation_stop_accuracy")
    phases = dict.fromkeys(name for row in rows for name in row if name.startswith(SECONDS))
    seconds = {name.removeprefix(SECONDS): points_of(rows, name) for name in phases}
    panels = [
        Panel("What plan turns chose", kb_use(rows), y="share of plan turns", low=0.0, high=1.0),
        Panel("Entropy of routes, by what was needed", kb_entropy_lines(rows), y="nats", low=0.0),
        panel("Reward of a turn", "reward_plan", "reward_answer", "reward_final", high=1, y="mean reward"),
        panel("Turns that were right", "routing", "stop", "format", high=1, y="share"),
        panel("Retrievals per question", "retrievals_per_question", y="searches"),
        replace(panel("Validation questions", *validation, high=1), ceiling=ceiling),
        panel("Loss", "loss", low=None),
        panel("Groups with variance, which are learned from", "varied_groups", high=1, y="share"),
        panel("All routes of a plan turn", "best_route_probability", "route_entropy", y="probability; nats"),
        panel("Entropy of a sampled token", "entropy", y="nats"),
        panel("Log-probability gap between rollout and learner", "mismatch", "mismatch_k3", y="nats"),
        panel("Gradient norm", "grad_norm"),
        panel("Sampled tokens", "tokens_per_second", y="tokens per second"),
        Panel("Time of an iteration, by phase", seconds, y="seconds", low=0.0),
    ]
    drawn = (inline_svg(line_charts([found], found.title), found.title) for found in panels)
    figures = "".join(f"<figure>{svg}</figure>" for svg in drawn if svg)
    if not figures:
        return ""
    return f"<h2 id='curves'>How it learned</h2><p>Thin: each iteration. Thick: moving mean.</p><div class='figures'>{figures}</div>"


def kb_use(rows: Rows) -> dict[str, Points]:
    """Knowledge base, or `stop` -> (iteration, share of the plan turns); 0 in iterations that do not name it."""
    known = [row for row in rows if f"{USE}stop" in row]
    names = dict.fromkeys(name.removeprefix(USE) for row in known for name in row if name.startswith(USE)).keys()
    order = [*(name for name in ORDER if name in names), *(name for name in names if name not in (*ORDER, "stop")), *(names & {"stop"})]
    return {name: [(row["iteration"], row.get(f"{USE}{name}", 0.0)) for row in known] for name in order}


def kb_entropy_lines(rows: Rows) -> dict[str, Points]:
    """What was needed, `all` turns together, or `all, if right` -> (iteration, nats)."""
    names = sorted({name.removeprefix(ENTROPY) for row in rows for name in row if name.startswith(ENTROPY)} - {*ORDER})
    found: dict[str, Points] = {name: points_of(rows, f"{ENTROPY}{name}") for name in (*ORDER, *names)}
    return found | {"all": points_of(rows, "kb_entropy"), "all, if right": points_of(rows, "right_kb_entropy")}


def time_section(summary: Mapping[str, Any]) -> str:
    """Phases of the run, and those of its training. Empty without timings."""
    seconds: Mapping[str, float] = summary.get("seconds", {})
    total = sum(spent for phase, spent in seconds.items() if not phase.startswith("train_"))
    if not total:
        return ""
    table = Table("phase", f"seconds of {total:,.2f}", "share")
    for phase, spent in seconds.items():
        if spent:
            table.add_row(phase.replace("train_", "train: ").replace("_", " "), f"{spent:,.2f}", f"{spent / total:.0%}")
    overlap = summary.get("config", {}).get("train", {}).get("overlap")
    note = "<p>Rollout and update ran side by side: their seconds overlap.</p>" if overlap else ""
    return f"<h2 id='time'>Where the time went</h2>{note}{html_table(table)}"


def compared(summary: Summary) -> bool:
    return {"before", "after", "difference"} <= set(summary)


def html_table(table: Table) -> str:
    """Rich's table as HTML: its text; green and red cells get the classes `good` and `bad`."""

    def cell(found: Any) -> str:
        kind = {"green": "good", "red": "bad"}.get(str(getattr(found, "style", "")), "")
        return f"<td class='{kind}'>{escape(str(found))}</td>"

    heads = "".join(f"<th>{escape(str(column.header))}</th>" for column in table.columns)
    rows = zip(*(column.cells for column in table.columns), strict=True)
    body = "".join(f"<tr>{''.join(map(cell, row))}</tr>" for row in rows)
    return f"<div class='scroll'><table><tr>{heads}</tr>{body}</table></div>"


def _list(lines: Sequence[str]) -> str:
    return f"<ul class='warnings'>{''.join(f'<li>{line}</li>' for line in lines)}</ul>" if lines else ""


def _confusion(counts: Confusion, golds: Sequence[str], choices: Sequence[str], caption: str) -> str:
    right, total = sum(n for (gold, choice), n in counts.items() if is_right(gold, choice)), sum(counts.values())
    body = ""
    for gold in golds:
        of_row = sum(n for (other, _), n in counts.items() if other == gold)
        cells = ""
        for choice in choices:
            n, kind = counts.get((gold, choice), 0), " class='right'" if is_right(gold, choice) else ""
            shown = f"{n / of_row:.0%} <small>{n:,}</small>" if n else "<span class='soft'>·</span>"
            cells += f"<td{kind} style='--share:{n / of_row if n else 0.0:.3f}'>{shown}</td>"
        body += f"<tr><th scope='row'>{escape(gold.replace('_', '-'))}</th>{cells}</tr>"
    heads = "".join(f"<th scope='col'>{escape(choice.replace('_', '-'))}</th>" for choice in choices)
    return (
        f"<figure class='confusion'><figcaption>{escape(caption)}: {right / total:.1%} of {total:,} plan turns right</figcaption>"
        f"<div class='scroll'><table><tr><th>right ↓ chosen →</th>{heads}</tr>{body}</table></div></figure>"
    )
