"""`retrieval_cost`: a search costs 1, stopping costs nothing."""

from __future__ import annotations

from rewards.judged_turn import JudgedTurn
from rewards.terms.term import Term


def retrieval_cost(turn: JudgedTurn) -> float:
    return -1.0 if turn.action is None or turn.action.kb is not None else 0.0


RETRIEVAL_COST = Term(
    "retrieval_cost", retrieval_cost, frozenset({"plan"}), "fewer calls, as R1-Searcher++ (arXiv 2505.17005) rewards them", low=-1.0
)
