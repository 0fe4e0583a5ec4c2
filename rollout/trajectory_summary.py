"""What the driver needs to know of a trajectory: counts. The trajectory itself stays in Ray's object store."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from rollout.records import Trajectory

VALUE_COUNTS = ("values_asked", "values_reused", "values_sampled", "values_failed")  # fields of `PlanValues`


@dataclass(frozen=True)
class TrajectorySummary:
    """Counts of a trajectory, for the driver; sampled turns include siblings."""

    question_id: str
    error: str
    whole: bool
    sampled: dict[str, int]
    choices: tuple[str, ...]  # of the well-formed plan turns of the trunk: a knowledge base, or `stop`
    counts: dict[str, float]  # for example `masked_turns` (sampled after a failed search) and `cut_off_turns` (ended at the token limit)


def summary_of(trajectory: Trajectory) -> TrajectorySummary:
    steps, turns = trajectory.steps, [turn for group in trajectory.groups for turn in group.turns]
    choices = tuple(step.action.kb or "stop" for step in steps if step.plan is not None and step.action is not None)
    values = [group.values for group in trajectory.groups if group.values]
    counts: dict[str, float] = {
        "retrievals": trajectory.retrievals,
        "search_errors": trajectory.search_errors,
        "sampled_tokens": sum(len(turn.response_ids) for turn in turns) + sum(each.tokens for each in values),
        "masked_turns": sum(len(group.turns) for group in trajectory.groups if group.state.after_failure),
        "unknown_routes": sum(turn.routes is not None and not turn.routes.ids for turn in turns),
        "cut_off_turns": sum(turn.finish_reason == "length" for turn in turns),
        "steps": len(steps),
        "malformed_plans": sum(step.action is None for step in steps),
    }
    if values:
        counts |= {name: sum(getattr(each, name.removeprefix("values_")) for each in values) for name in VALUE_COUNTS}
        counts |= {
            "value_tokens": sum(v.tokens for v in values),
            "valued_plans": len(values),
            "value_spread": sum(v.spread for v in values),
        }
    sampled: dict[str, int] = dict(Counter(turn.kind for turn in turns))
    return TrajectorySummary(trajectory.question.id, trajectory.error, trajectory.whole, sampled, choices, counts)
