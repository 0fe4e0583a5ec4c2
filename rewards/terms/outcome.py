"""`outcome`: nothing counts but the final answer, as in outcome GRPO.

Every turn of an episode earns what its final answer earns. To be compared between whole episodes: `rollout.mode=chain learner.step_weight=0
learner.episode_weight=1`.
"""

from __future__ import annotations

from rewards.judged_turn import JudgedTurn
from rewards.terms.term import Term


def outcome(turn: JudgedTurn) -> float | None:
    return turn.outcome if turn.state.question.answers else None


OUTCOME = Term(
    "outcome",
    outcome,
    frozenset({"plan", "answer", "final"}),
    "GRPO with outcome rewards, as in Search-R1 (arXiv 2503.09516)",
    needs_chain=True,
)
