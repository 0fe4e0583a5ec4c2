"""What a run comes to: the head of the report, before and after, other ways of routing, families."""

from __future__ import annotations

import time
from collections.abc import Mapping
from html import escape
from typing import Any

from experiments.charts import interval_chart
from experiments.measures import MEASURES, excludes_zero
from experiments.result_tables import HEADINGS, LESS_IS_BETTER
from rollout.methods.registry import label_of

Summary = Mapping[str, Any]
"""summary.json of a run."""


def head(summary: Summary, name: str) -> str:
    machine = summary.get("machine", {})
    facts = [
        time.strftime("%d %B %Y", time.localtime(summary["finished"])) if "finished" in summary else "",
        f"{summary.get('iterations', 0)} iterations",
        f"{summary.get('turns', 0):,} turns",
        f"{summary.get('sampled_tokens', 0):,} sampled tokens",
        f"policy version {summary.get('policy_version', 0)}",
        f"commit {str(summary.get('git_commit') or 'unknown')[:10]}",
        f"{machine.get('cpus', '?')} CPUs, {machine.get('memory_gib', '?')} GiB",
        "" if compared(summary) else "not measured after training: it was stopped, failed, or is still going on",
    ]
    return f"<h1>{escape(name)}</h1><p class='soft facts'>{escape(' · '.join(filter(None, facts)))}</p>"


def tiles(summary: Summary) -> str:
    if not compared(summary):
        return ""
    drawn = []
    for name in ("f1_recall", "routing_accuracy", "stop_accuracy", "retrievals_per_question"):
        before, after = summary["before"]["overall"][name], summary["after"]["overall"][name]
        if after["value"] is not None and before["value"] is not None:
            drawn.append(
                f"<div class='tile'><span>{HEADINGS[name]}</span><b>{after['value']:.2f}</b>"
                f"<em>{_change(name, summary['difference'][name])} <span>from {before['value']:.2f}</span></em></div>"
            )
    return f"<div class='tiles'>{''.join(drawn)}</div>"


def warnings(summary: Summary) -> str:
    """Signs of collapse. Nothing is said of a run that was not watched."""
    if "warnings" not in summary:
        return ""
    told = "".join(
        f"<li><b>iteration {found['iteration']}: {escape(found['name'])} {found['found']:.4g}</b> (threshold {found['threshold']:g}): "
        f"{escape(found['cause'])}; try {escape(found['advice'])}</li>"
        for found in summary["warnings"]
    )
    said = f"<ul class='warnings'>{told}</ul>" if told else f"<p>No sign of collapse in {summary.get('iterations', 0)} iterations.</p>"
    return f"<h2 id='warnings'>Warnings</h2>{said}"


def before_after(summary: Summary) -> str:
    if not compared(summary):
        return ""
    before, after = summary["before"]["overall"], summary["after"]["overall"]
    rows = "".join(
        f"<tr><td title='{escape(what)}'>{HEADINGS[name]}</td><td>{cell(before[name])}</td><td>{cell(after[name])}</td>"
        f"<td>{_change(name, summary['difference'][name])} <small>{_range(summary['difference'][name])}</small></td></tr>"
        for name, what in MEASURES.items()
        if name in before and name in after
    )
    return (
        f"<h2 id='results'>Before and after</h2><p>{summary['before']['questions']} held-out questions, the same before and after; 95 % bootstrap "
        "intervals over questions. The difference is paired; it is coloured where its interval excludes zero.</p>"
        f"<div class='scroll'><table><tr><th>measure</th><th>before</th><th>after</th><th>difference</th></tr>{rows}</table></div>"
    )


def methods(summary: Summary) -> str:
    others = summary.get("baselines")
    if not others or not compared(summary):
        return ""
    figures = {label_of("policy"): summary["after"]["overall"]}
    figures |= {label_of(name): found["overall"] for name, found in others.items()}
    figures[label_of("policy") + ", before training"] = summary["before"]["overall"]
    figures |= {f"{label_of(name)}, before training": found["overall"] for name, found in summary.get("start_baselines", {}).items()}
    names = ("f1_recall", "exact_match", "routing_accuracy", "retrievals_per_question")
    rows = "".join(
        f"<tr><td>{escape(method)}</td>{''.join(f'<td>{cell(found[name])}</td>' for name in names)}</tr>"
        for method, found in figures.items()
    )
    chart = interval_chart(
        {method: (f["value"], f["low"], f["high"]) for method, found in figures.items() if (f := found["f1_recall"])["value"] is not None},
        label="F1-Recall with 95 % intervals",
    )
    heads = "".join(f"<th>{HEADINGS[name]}</th>" for name in names)
    return (
        "<h2>Against other ways of routing</h2><p>The same held-out questions. Without a note, the policy is the trained one.</p>"
        f"{chart}<div class='scroll'><table><tr><th>method</th>{heads}</tr>{rows}</table></div>"
    )


def families(summary: Summary) -> str:
    if not compared(summary):
        return ""
    before, after = summary["before"]["by_family"], summary["after"]["by_family"]
    names = ("f1_recall", "exact_match", "routing_accuracy", "stop_accuracy", "retrievals_per_question", "format_rate")
    rows = "".join(
        f"<tr><td>{escape(family or 'all')}</td><td>{found['questions']}</td>"
        + "".join(f"<td>{_short(before[family][name])} → {cell(found[name])}</td>" for name in names)
        + "</tr>"
        for family, found in after.items()
    )
    heads = "".join(f"<th>{HEADINGS[name]}</th>" for name in names)
    return (
        "<h2>By question family</h2><p>Before → after.</p>"
        f"<div class='scroll'><table><tr><th>family</th><th>questions</th>{heads}</tr>{rows}</table></div>"
    )


def compared(summary: Summary) -> bool:
    return {"before", "after", "difference"} <= set(summary)


def cell(figure: Mapping[str, Any]) -> str:
    return "–" if figure["value"] is None else f"{figure['value']:{_digits(figure)}} <small>{_range(figure)}</small>"


def _change(name: str, change: Mapping[str, Any]) -> str:
    if change["value"] is None:
        return ""
    good = (change["value"] > 0) != (name in LESS_IS_BETTER)
    kind = ("good" if good else "bad") if excludes_zero(change) else "soft"
    return f"<span class='{kind}'>{change['value']:+{'.0f' if abs(change['value']) >= 100 else '.2f'}}</span>"


def _range(figure: Mapping[str, Any]) -> str:
    digits = _digits(figure)
    return "" if figure["value"] is None else f"[{figure['low']:{digits}}, {figure['high']:{digits}}]"


def _digits(figure: Mapping[str, Any]) -> str:
    return ".0f" if figure["value"] is not None and abs(figure["value"]) >= 100 else ".3f"


def _short(figure: Mapping[str, Any]) -> str:
    return "–" if figure["value"] is None else f"{figure['value']:.2f}"
