"""What one iteration's trajectories and rewards say in numbers. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

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
