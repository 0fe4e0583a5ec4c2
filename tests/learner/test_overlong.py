"""Turns that were cut off: kept, or masked."""

from __future__ import annotations

import numpy as np
from local_rows import dealt_rows

from learner.config import LearnerConfig
from learner.objective.advantages import turn_advantages
from rollout.records import ScoredTurn, Turn, TurnReward


def turn(tokens, reward, reason="stop", kind="plan"):
    sampled = Turn(kind, np.zeros(tokens, np.int32), np.zeros(tokens, np.float32), reason, 0, "")
    return ScoredTurn("s", np.array([1], np.int32), None, sampled, TurnReward(reward, {}, {"query": reward}), "e", 0.0, "q")


def test_a_masked_turn_is_compared_with_but_not_learned_from():
    turns = [turn(4, 1.0), turn(4, 0.5), turn(10, 0.0, "length")]
    kept, masked = (turn_advantages(turns, LearnerConfig(overlong=overlong)) for overlong in ("keep", "mask"))
    np.testing.assert_array_equal(kept.advantages, masked.advantages)
    assert kept.kept.tolist() == [True, True, True]
    assert masked.kept.tolist() == [True, True, False]
    (rows,) = dealt_rows(turns, masked, LearnerConfig(overlong="mask"), 0)
    assert [len(response.ids) for row in rows for response in row.responses] == [4, 4]
