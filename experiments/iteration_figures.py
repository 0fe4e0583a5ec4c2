"""One line of metrics.jsonl: what an iteration did, under the names that progress, report and MLflow show."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rollout.records import ScoredTurn, Trajectory

LEARNER = (
    *("loss", "grad_norm", "lr", "entropy", "clip_fraction", "ratio_max", "kl", "learned_tokens"),
    *("mismatch", "mismatch_max", "mismatch_k3", "correction"),
)
"""Figures of the learner that are kept as they are."""

ROLLOUT = (
    *("lost_workers", "asked_questions", "returned_questions", "requeued_questions", "failed_questions", "asked_again"),
    *("staleness", "staleness_max", "left_out_questions", "unjudged_plan", "unjudged_answer", "unjudged_final"),
)
"""Figures of the rollout that are kept as they are."""


def iteration_figures(result: Mapping[str, Any], trajectories: Sequence[Trajectory], turns: Sequence[ScoredTurn]) -> dict[str, Any]:
    """`result`: what `StepGRPO.train` returned; `trajectories` and `turns`: of that iteration."""
    rollout, rewards, learned, seconds = (result.get(part, {}) for part in ("rollout", "reward", "learner", "seconds"))
    groups = learned.get("groups", 0)
    row = {
        "iteration": int(result["training_iteration"]),
        "finished": round(time.time(), 3),
        "policy_version": int(learned.get("policy_version", 0)),
        "reward": _mean([turn.reward.total for turn in turns]),
        "reward_plan": rewards.get("plan"),
        "reward_answer": rewards.get("answer"),
        "reward_final": rewards.get("final"),
        "outcome": rewards.get("outcome"),
        "routing": rewards.get("plan/routing"),
        "entity": rewards.get("plan/entity"),
        "query": rewards.get("plan/query"),
        "stop": rewards.get("plan/stop"),
        "premature_stop": rewards.get("plan/premature"),
        "abstain": rewards.get("answer/abstain"),
        "format": _mean([turn.reward.components.get("format") for turn in turns]),
        "retrievals": rollout.get("retrievals_per_question"),
        "search_errors": rollout.get("search_errors"),
        "cut_off_turns": rollout.get("cut_off_turns"),
        "lost_in_transfer": rollout.get("lost_in_transfer"),
        **{name: rollout.get(name) for name in ROLLOUT},
        "trajectories": len(trajectories),
        "turns": int(rollout.get("turns", 0)),
        "judged_turns": len(turns),
        "sampled_tokens": int(rollout.get("sampled_tokens", 0)),
        "tokens_per_second": rollout.get("sampled_tokens", 0) / max(seconds["rollout"], 1e-9) if "rollout" in seconds else None,
        "varied_groups": 1 - learned.get("dropped_groups", 0) / groups if groups else None,
        **{name: learned.get(name) for name in LEARNER},
        **{f"seconds_{phase}": value for phase, value in seconds.items()},
        **{f"workers_{name}": value for name, value in result.get("workers", {}).items()},
        **knowledge_base_use(trajectories),
    }
    return {name: value for name, value in row.items() if value is not None and value == value}  # RLlib gives NaN for what was not logged


def knowledge_base_use(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """`use_text`, ..., `use_stop`: shares of what the well-formed plan turns of the trunks chose; empty without any."""
    chosen = Counter(
        step.action.kb or "stop"
        for trajectory in trajectories
        for step in trajectory.steps
        if step.plan is not None and step.action is not None
    )
    total = sum(chosen.values())
    names = dict.fromkeys(("text", "text_image", "table", *sorted(chosen), "stop"))
    return {f"use_{name}": chosen[name] / total for name in names} if total else {}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
