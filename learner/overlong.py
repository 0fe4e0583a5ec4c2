"""Turns that came near their limit of tokens, or were cut off there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from learner.config import LearnerConfig
from rollout.config import RolloutConfig
from rollout.records import ScoredTurn


def cut_off(turns: Sequence[ScoredTurn]) -> np.ndarray:
    """(turns,) bool: which turns ended at their limit of tokens, not by themselves."""
    return np.array([turn.turn.finish_reason == "length" for turn in turns], bool)


def soft_penalty(tokens: int, limit: int, buffer: int) -> float:
    """Soft overlong punishment (DAPO, Yu et al. 2025, arXiv 2503.14476, equation 13): 0 up to limit - buffer tokens, then linearly down to -1 at
    the limit."""
    return -min(1.0, max(0.0, (tokens - (limit - buffer)) / buffer))


def penalised(turns: Sequence[ScoredTurn], learner: LearnerConfig, rollout: RolloutConfig) -> list[ScoredTurn]:
    """`learner.overlong=penalty`: the penalty is part of the reward of each turn, as `overlong`. Otherwise the turns as they are."""
    if learner.overlong != "penalty":
        return list(turns)
    return [_with_penalty(turn, learner, rollout.longest(turn.turn.kind)) for turn in turns]


def _with_penalty(turn: ScoredTurn, config: LearnerConfig, limit: int) -> ScoredTurn:
    buffer = max(1, round(config.overlong_buffer * limit))
    penalty = config.overlong_weight * soft_penalty(len(turn.turn.response_ids), limit, buffer)
    reward = turn.reward
    parts = (reward.parts or {"total": reward.total}) | {"overlong": penalty}
    return replace(turn, reward=replace(reward, total=reward.total + penalty, parts=parts))
