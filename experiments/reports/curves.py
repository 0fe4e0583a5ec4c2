"""How a run went, iteration by iteration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from experiments.charts import area_chart, line_chart

USE = "use_"
"""Begins the figures of what plan turns chose: `use_text`, ..., `use_stop`."""


def curves(rows: Sequence[dict[str, Any]]) -> str:
    """`rows`: metrics.jsonl. Empty without any."""

    def points(name: str) -> list[tuple[float, float]]:
        return [(row["iteration"], row[name]) for row in rows if isinstance(row.get(name), int | float)]

    def series(**names: str) -> dict[str, list[tuple[float, float]]]:
        return {label.replace("_", " "): found for label, name in names.items() if (found := points(name))}

    charts = [
        line_chart(
            series(plan="reward_plan", answer="reward_answer", final="reward_final"), label="Reward of a turn, by kind", low=0, high=1
        ),
        line_chart(series(routing="routing", stop="stop", well_formed="format"), label="Plan turns that were right", low=0, high=1),
        area_chart(kb_use(rows), label="What plan turns chose"),
        line_chart(series(retrievals="retrievals"), label="Retrievals a question", low=0),
        line_chart(
            series(F1_Recall="validation_f1_recall", routing="validation_routing_accuracy", stop="validation_stop_accuracy"),
            label="On validation questions",
            low=0,
            high=1,
        ),
        line_chart(series(loss="loss"), label="Loss"),
        line_chart(series(groups="varied_groups"), label="Groups with variance: the ones that teach", low=0, high=1),
        line_chart(series(entropy="entropy"), label="Entropy of a sampled token, nats", low=0),
        line_chart(series(mean="mismatch", k3="mismatch_k3"), label="Log-probability gap between rollout and learner, nats", low=0),
        line_chart(series(norm="grad_norm"), label="Gradient norm", low=0),
        line_chart(series(tokens="tokens_per_second"), label="Sampled tokens a second", low=0),
    ]
    drawn = "".join(chart for chart in charts if chart)
    if not drawn:
        return ""
    return f"<h2 id='curves'>How it learned</h2><p>Thin: each iteration. Thick: moving mean.</p><div class='figures'>{drawn}</div>"


def kb_use(rows: Sequence[dict[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    """Knowledge base, or `stop` -> (iteration, share of the plan turns). Where one came up later than the others, it had no share before."""
    told = [row for row in rows if f"{USE}stop" in row]
    names = dict.fromkeys(name.removeprefix(USE) for row in told for name in row if name.startswith(USE))
    order = [*(name for name in names if name != "stop"), *(["stop"] if "stop" in names else [])]
    return {name: [(row["iteration"], row.get(f"{USE}{name}", 0.0)) for row in told] for name in order}
