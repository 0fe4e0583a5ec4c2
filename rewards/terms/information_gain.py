"""`information_gain`: how much a sub-answer raised the policy's own probability of the gold answer (rollout/gold_belief.py)."""

from __future__ import annotations

from rewards.judged_turn import JudgedTurn
from rewards.terms.term import Term


def information_gain(turn: JudgedTurn) -> float | None:
    return turn.gain


INFORMATION_GAIN = Term(
    "information_gain", information_gain, frozenset({"answer"}), "IGPO (arXiv 2510.14967): gain in p(gold answer) per turn", low=-1.0
)
