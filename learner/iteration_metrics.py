"""What one iteration's trajectories and rewards say in numbers. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rollout.episode_run import WorkReport
from rollout.records import ScoredTurn, Trajectory


def rollout_metrics(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """Counts of the iteration, and means over trajectories or turns."""
    turns = [turn for trajectory in trajectories for group in trajectory.groups for turn in group.turns]
    plans = [step.action for trajectory in trajectories for step in trajectory.steps]
    return {
        "trajectories": float(len(trajectories)),
        "turns": float(len(turns)),
        "sampled_tokens": float(sum(len(turn.response_ids) for turn in turns)),
        "retrievals_per_question": _mean([trajectory.retrievals for trajectory in trajectories]),
        "search_errors": float(sum(trajectory.search_errors for trajectory in trajectories)),
        "malformed_plans": _mean([action is None for action in plans]),
        "cut_off_turns": _mean([turn.finish_reason == "length" for turn in turns]),
    }


def staleness(turns: Sequence[ScoredTurn], version: int) -> dict[str, float]:
    """Updates between the policy version that sampled a turn and the one that learned from it."""
    ages = [version - turn.turn.policy_version for turn in turns]
    return {"staleness": _mean(ages), "staleness_max": float(max(ages, default=0))}


def worker_metrics(reports: Sequence[WorkReport]) -> dict[str, float]:
    """What the rollout workers did in an iteration: seconds over all of them, `tokens_per_second` of a worker that is not idle, `slots_in_use`,
    `search_share` of the seconds that are not idle; of each worker its policy version and its memory."""
    seconds = dict.fromkeys(("prefill", "decode", "encode", "search", "idle"), 0.0)
    for report in reports:
        for name, value in report.seconds.items():
            seconds[name] = seconds.get(name, 0.0) + value
    busy = sum(seconds.values()) - seconds["idle"]
    used, available = (sum(getattr(report, f"slot_steps_{name}") for report in reports) for name in ("used", "available"))
    found = {f"{name}_s": value for name, value in seconds.items()}
    if busy:
        found["search_share"] = seconds["search"] / busy
        found["tokens_per_second"] = sum(report.sampled_tokens for report in reports) / busy
    if available:
        found["slots_in_use"] = used / available
    for report in reports:
        found |= {f"{report.worker}/policy_version": float(report.policy_version), f"{report.worker}/memory_mb": report.memory_mb}
    return found


def reward_metrics(turns: Sequence[ScoredTurn]) -> dict[str, float]:
    """Mean reward (`plan`, `answer`, `final`), its components (`plan/routing`, ...), and the mean `outcome` of the episodes."""
    found: dict[str, list[float]] = {}
    for turn in turns:
        found.setdefault(turn.turn.kind, []).append(turn.reward.total)
        for name, value in turn.reward.components.items():
            found.setdefault(f"{turn.turn.kind}/{name}", []).append(value)
    outcomes = {turn.episode: turn.outcome for turn in turns}
    return {name: _mean(values) for name, values in sorted(found.items())} | {"outcome": _mean(list(outcomes.values()))}


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else 0.0
