"""`report.html`: everything that a run measured, on one page that needs no other file."""

from __future__ import annotations

import time
from collections.abc import Mapping
from html import escape
from typing import Any

from experiments.charts import area_chart, interval_chart, line_chart
from experiments.measures import MEASURES, excludes_zero
from experiments.report_style import STYLE
from experiments.result_tables import HEADINGS, LESS_IS_BETTER
from experiments.run_folder import RunFolder
from experiments.trajectory_cards import card, pick
from rollout.methods.registry import label_of

KNOWLEDGE_BASES = {"use_text": "text", "use_text_image": "text-image", "use_table": "table", "use_stop": "stop"}
"""Metric of an iteration -> what its plan turns chose."""


def write_report(folder: RunFolder) -> None:
    """Needs metrics.jsonl and summary.json; what is missing there is left out of the page."""
    summary, rows = folder.summary(), folder.metrics()
    parts = [
        _head(summary),
        _tiles(summary),
        _warnings(summary),
        _before_after(summary),
        _methods(summary),
        _curves(rows),
        _families(summary),
    ]
    parts += [_trajectories(folder), _time(summary), _settings(folder)]
    name = escape(str(summary.get("name", folder.path.name)))
    folder.report.write_text(
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{name}</title><style>{STYLE}</style></head><body><main>{''.join(parts)}</main></body></html>\n",
        encoding="utf-8",
    )


def _head(summary: Mapping[str, Any]) -> str:
    machine = summary.get("machine", {})
    facts = [
        time.strftime("%d %B %Y", time.localtime(summary.get("finished", time.time()))),
        f"{summary.get('iterations', 0)} iterations",
        f"{summary.get('turns', 0):,} turns",
        f"{summary.get('sampled_tokens', 0):,} sampled tokens",
        f"policy version {summary.get('policy_version', 0)}",
        f"commit {str(summary.get('git_commit') or 'unknown')[:10]}",
        f"{machine.get('cpus', '?')} CPUs, {machine.get('memory_gib', '?')} GiB",
    ]
    return f"<h1>{escape(str(summary.get('name', 'run')))}</h1><p class='soft'>{escape(' · '.join(facts))}</p>"


def _tiles(summary: Mapping[str, Any]) -> str:
    if not {"before", "after"} <= set(summary):
        return ""
    tiles = []
    for name in ("f1_recall", "routing_accuracy", "stop_accuracy", "retrievals_per_question"):
        before, after = summary["before"]["overall"][name], summary["after"]["overall"][name]
        if after["value"] is not None and before["value"] is not None:
            tiles.append(
                f"<div class='tile'><span>{HEADINGS[name]}</span><b>{after['value']:.2f}</b>"
                f"<em>{_change(name, summary['difference'][name])} <span>from {before['value']:.2f}</span></em></div>"
            )
    return f"<div class='tiles'>{''.join(tiles)}</div>"


def _change(name: str, change: Mapping[str, Any]) -> str:
    if change["value"] is None:
        return ""
    good = (change["value"] > 0) != (name in LESS_IS_BETTER)
    kind = ("good" if good else "bad") if excludes_zero(change) else "soft"
    return f"<span class='{kind}'>{change['value']:+.2f}</span>"


def _warnings(summary: Mapping[str, Any]) -> str:
    told = "".join(
        f"<li>iteration {found['iteration']}: {escape(found['name'])} {found['found']:.4g} (threshold {found['threshold']:g}): "
        f"{escape(found['cause'])}; try {escape(found['advice'])}</li>"
        for found in summary.get("warnings", [])
    )
    return f"<h2>Warnings</h2><ul>{told}</ul>" if told else ""


def _before_after(summary: Mapping[str, Any]) -> str:
    if not {"before", "after"} <= set(summary):
        return ""
    before, after = summary["before"]["overall"], summary["after"]["overall"]
    rows = "".join(
        f"<tr><td title='{escape(what)}'>{HEADINGS[name]}</td><td>{_cell(before[name])}</td><td>{_cell(after[name])}</td>"
        f"<td>{_change(name, summary['difference'][name])} <small>{_range(summary['difference'][name])}</small></td></tr>"
        for name, what in MEASURES.items()
    )
    return (
        f"<h2>Before and after</h2><p>{summary['before']['questions']} held-out questions, the same before and after; 95 % bootstrap intervals "
        "over questions. The difference is paired.</p>"
        f"<div class='scroll'><table><tr><th>measure</th><th>before</th><th>after</th><th>difference</th></tr>{rows}</table></div>"
    )


def _methods(summary: Mapping[str, Any]) -> str:
    methods = summary.get("baselines")
    if not methods:
        return ""
    figures = {label_of("policy"): summary["after"]["overall"]}
    figures |= {label_of(name): found["overall"] for name, found in methods.items()}
    figures[label_of("policy") + ", before training"] = summary["before"]["overall"]
    figures |= {f"{label_of(name)}, before training": found["overall"] for name, found in summary.get("start_baselines", {}).items()}
    names = ("f1_recall", "exact_match", "routing_accuracy", "retrievals_per_question")
    rows = "".join(
        f"<tr><td>{escape(method)}</td>{''.join(f'<td>{_cell(found[name])}</td>' for name in names)}</tr>"
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


def _curves(rows: list[dict[str, Any]]) -> str:
    def points(name: str) -> list[tuple[float, float]]:
        return [(row["iteration"], row[name]) for row in rows if isinstance(row.get(name), int | float)]

    def series(**names: str) -> dict[str, list[tuple[float, float]]]:
        return {label.replace("_", " "): found for label, name in names.items() if (found := points(name))}

    shares = {label: found for name, label in KNOWLEDGE_BASES.items() if (found := points(name))}
    charts = [
        line_chart(
            series(plan="reward_plan", answer="reward_answer", final="reward_final"), label="Reward of a turn, by kind", low=0, high=1
        ),
        line_chart(series(routing="routing", stop="stop", well_formed="format"), label="Plan turns that were right", low=0, high=1),
        area_chart(shares, label="What plan turns chose"),
        line_chart(series(retrievals="retrievals"), label="Retrievals a question", low=0),
        line_chart(
            series(F1_Recall="validation_f1_recall", routing="validation_routing_accuracy", stop="validation_stop_accuracy"),
            label="On validation questions",
            low=0,
            high=1,
        ),
        line_chart(series(groups="varied_groups"), label="Groups with variance: the ones that teach", low=0, high=1),
        line_chart(series(entropy="entropy"), label="Entropy of a sampled token, nats", low=0),
        line_chart(series(mean="mismatch", k3="mismatch_k3"), label="Log-probability gap between rollout and learner, nats", low=0),
        line_chart(series(norm="grad_norm"), label="Gradient norm", low=0),
        line_chart(series(tokens="tokens_per_second"), label="Sampled tokens a second", low=0),
    ]
    drawn = "".join(chart for chart in charts if chart)
    return f"<h2>How it learned</h2><p>Thin: each iteration. Thick: moving mean.</p><div class='figures'>{drawn}</div>" if drawn else ""


def _families(summary: Mapping[str, Any]) -> str:
    if not {"before", "after"} <= set(summary):
        return ""
    before, after = summary["before"]["by_family"], summary["after"]["by_family"]
    names = ("f1_recall", "exact_match", "routing_accuracy", "stop_accuracy", "retrievals_per_question", "format_rate")
    rows = "".join(
        f"<tr><td>{escape(family or 'all')}</td><td>{found['questions']}</td>"
        + "".join(f"<td>{_short(before[family][name])} → {_cell(found[name])}</td>" for name in names)
        + "</tr>"
        for family, found in after.items()
    )
    heads = "".join(f"<th>{HEADINGS[name]}</th>" for name in names)
    return (
        "<h2>By question family</h2><p>Before → after.</p>"
        f"<div class='scroll'><table><tr><th>family</th><th>questions</th>{heads}</tr>{rows}</table></div>"
    )


def _trajectories(folder: RunFolder) -> str:
    after = folder.read_trajectories("after")
    before = {row["question_id"]: row for row in folder.read_trajectories("before")}
    cards = "".join(card(row, before.get(row["question_id"])) for row in pick(after))
    return f"<h2>Step by step</h2><p>Held-out questions, right and wrong ones of every family.</p>{cards}" if cards else ""


def _time(summary: Mapping[str, Any]) -> str:
    seconds = summary.get("seconds", {})
    rows = "".join(f"<tr><td>{escape(phase.replace('_', ' '))}</td><td>{value:,.1f}</td></tr>" for phase, value in seconds.items())
    return (
        f"<h2>Where the time went</h2><div class='scroll'><table><tr><th>phase</th><th>seconds</th></tr>{rows}</table></div>"
        if rows
        else ""
    )


def _settings(folder: RunFolder) -> str:
    settings = escape((folder.path / "config.yaml").read_text(encoding="utf-8"))
    return f"<h2>Settings</h2><details><summary>config.yaml</summary><pre>{settings}</pre></details>"


def _cell(figure: Mapping[str, Any]) -> str:
    return "–" if figure["value"] is None else f"{figure['value']:.3f} <small>{_range(figure)}</small>"


def _range(figure: Mapping[str, Any]) -> str:
    return "" if figure["value"] is None else f"[{figure['low']:.3f}, {figure['high']:.3f}]"


def _short(figure: Mapping[str, Any]) -> str:
    return "–" if figure["value"] is None else f"{figure['value']:.2f}"
