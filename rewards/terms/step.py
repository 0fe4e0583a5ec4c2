"""`step`: the reward of R1-Router, as `reward.query_weight` and its neighbours set it; `answers`: its part for answer and final turns alone."""

from __future__ import annotations

from rewards.judged_turn import JudgedTurn
from rewards.step_rewards import judge_of
from rewards.terms.term import Term


def step_reward(turn: JudgedTurn) -> float | None:
    judge = judge_of(turn.state, turn.similarity, turn.config, turn.retrievers)
    return None if judge is None else judge(turn.text).total


STEP = Term("step", step_reward, frozenset({"plan", "answer", "final"}), "R1-Router (arXiv 2505.22095), section Rewards")
ANSWERS = Term("answers", step_reward, frozenset({"answer", "final"}), "R1-Router (arXiv 2505.22095): token recall of the gold answer")
