"""Names under which MLflow shows the figures of a run: `section/name`, so that its pages group them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from experiments.iteration_figures import LEARNER, ROLLOUT

SECTIONS = {
    "reward": "mean reward of a sampled turn, 0 to 1, by kind of turn; `outcome` is that of the answer",
    "plan": "components of a plan turn's reward, 0 to 1: the right knowledge base, entity, query, stop",
    "answer": "components of an answer turn's reward",
    "kb_share": "what plan turns chose: shares of the knowledge bases and of stopping, together 1",
    "rollout": "how much was sampled, how fast, what went wrong",
    "retrieval": "what the knowledge bases did: searches, cache, errors",
    "learner": "loss, gradient norm, entropy (nats), ratios, log-probability gap to the rollout (nats)",
    "validation": "greedy, on questions that choose the best policy",
    "heldout": "greedy, on held-out questions: at step 0 the policy that training started from, at the last step the best one",
    "heldout_gain": "the second minus the first, paired; intervals are in the description and in tables/measures.json",
    "f1_recall_by_method": "F1-Recall of each way of routing on the held-out questions",
    "seconds": "wall-clock seconds of the parts of an iteration",
    "workers": "health of the rollout workers",
    "run": "counts of the whole run: signs of collapse that stand, checkpoints that could not be written",
    "system": "the machine of the driver, every 10 s: CPU and memory in %, and in MB; disk; network",
}
"""Section -> what stands there."""

_EXACT = {
    "reward": "reward/all",
    "outcome": "reward/outcome",
    **{f"reward_{kind}": f"reward/{kind}" for kind in ("plan", "answer", "final")},
    **{name: f"plan/{name}" for name in ("routing", "entity", "query", "stop", "premature_stop")},
    "abstain": "answer/abstain",
    "format": "rollout/format",
    "retrievals": "rollout/retrievals_per_question",
    "search_errors": "retrieval/search_errors",
    **{name: f"rollout/{name}" for name in (*ROLLOUT, "cut_off_turns", "lost_in_transfer", "trajectories", "turns", "judged_turns")},
    **{name: f"rollout/{name}" for name in ("sampled_tokens", "tokens_per_second")},
    **{name: f"learner/{name}" for name in (*LEARNER, "varied_groups", "policy_version")},
}
_BY_PREFIX = {
    "use_": "kb_share",
    "seconds_": "seconds",
    "workers_": "workers",
    "retrieval_": "retrieval",
    "validation_": "validation",
    "reward_": "reward",
}
_PLACE = {section: place for place, section in enumerate(SECTIONS)}
_NO_METRICS = frozenset({"iteration", "finished"})
"""The step and its time."""


def metric_name(key: str) -> str:
    """`section/name` of a key of metrics.jsonl; keys that nobody has put in a section are in `run`."""
    if key in _EXACT:
        return _EXACT[key]
    for prefix, section in _BY_PREFIX.items():
        if key.startswith(prefix):
            return f"{section}/{key.removeprefix(prefix)}"
    return f"run/{key}"


def iteration_metrics(row: Mapping[str, Any]) -> dict[str, float]:
    """A line of metrics.jsonl under MLflow's names, in the order of the sections: MLflow shows the first one first. Numbers only: whatever else,
    and what is no finite number, is left out."""
    found = {metric_name(key): float(value) for key, value in row.items() if key not in _NO_METRICS and is_number(value)}
    return dict(sorted(found.items(), key=lambda item: _PLACE[item[0].split("/")[0]]))


def result_metrics(summary: Mapping[str, Any]) -> Iterable[tuple[dict[str, float], int]]:
    """(metrics, step) of what summary.json holds: before at step 0, after at the last iteration. What has one value is at step 0: MLflow draws it
    as a bar."""
    last = int(summary.get("iterations") or 0)
    for section, when, step in (("heldout", "before", 0), ("heldout", "after", last), ("heldout_gain", "difference", 0)):
        figures = summary.get(when, {})
        yield {f"{section}/{name}": value for name, value in _values(figures.get("overall", figures)).items()}, step
    by_method = {"policy": summary.get("after", {})} | dict(summary.get("baselines") or {})
    values = {method.replace(":", "-"): _values(found.get("overall", {})) for method, found in by_method.items()}
    yield {f"f1_recall_by_method/{method}": found["f1_recall"] for method, found in values.items() if "f1_recall" in found}, 0


def seconds_of(rows: Sequence[Mapping[str, Any]], end: float) -> list[float]:
    """Unix seconds at which each iteration ended. Rows that do not say it themselves are laid out backwards from `end` by how long they took."""
    times, at = [], end
    for row in reversed(rows):
        at = float(row.get("finished") or at)
        times.append(at)
        at -= sum(value for key, value in row.items() if key.startswith("seconds_") and is_number(value))
    return times[::-1]


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _values(figures: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(f["value"]) for name, f in figures.items() if isinstance(f, Mapping) and is_number(f.get("value"))}
