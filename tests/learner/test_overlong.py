"""Turns that were cut off: kept, masked, or paid less the nearer they came to the limit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from learner.advantages import turn_advantages
from learner.config import LearnerConfig
from learner.mini_batches import deal
from learner.overlong import penalised, soft_penalty
from rollout.config import RolloutConfig
from rollout.records import ScoredTurn, Turn, TurnReward


def turn(tokens, reward, reason="stop", kind="plan"):
    sampled = Turn(kind, np.zeros(tokens, np.int32), np.zeros(tokens, np.float32), reason, 0, "")
    return ScoredTurn("s", np.array([1], np.int32), None, sampled, TurnReward(reward, {}, {"query": reward}), "e", 0.0, "q")


def test_the_penalty_grows_linearly_over_the_buffer():
    assert [soft_penalty(tokens, 100, 20) for tokens in (1, 80, 85, 90, 100)] == [0, 0, -0.25, -0.5, -1]


@given(st.integers(1, 400), st.integers(1, 200), st.data())
def test_the_penalty_is_never_a_reward_and_never_above_its_size(tokens, limit, data):
    buffer = data.draw(st.integers(1, limit))
    assert -1 <= soft_penalty(tokens, limit, buffer) <= 0
    assert soft_penalty(tokens + 1, limit, buffer) <= soft_penalty(tokens, limit, buffer)


def test_a_penalty_is_a_part_of_the_reward_and_knows_the_limit_of_the_kind():
    learner = LearnerConfig(overlong="penalty", overlong_buffer=0.5, overlong_weight=0.2)
    rollout = RolloutConfig(max_new_tokens=20, max_new_tokens_by_kind={"plan": 10})
    short, long, other = penalised([turn(5, 1.0), turn(10, 1.0, "length"), turn(10, 1.0, kind="final")], learner, rollout)
    assert (short.reward.total, other.reward.total) == (1.0, 1.0)
    assert long.reward.total == pytest.approx(0.8)
    assert long.reward.parts == {"query": 1.0, "overlong": pytest.approx(-0.2)}
    assert penalised([turn(10, 1.0, "length")], replace(learner, overlong="keep"), rollout)[0].reward.total == 1.0


def test_a_masked_turn_is_compared_with_but_not_learned_from():
    turns = [turn(4, 1.0), turn(4, 0.5), turn(10, 0.0, "length")]
    kept, masked = (turn_advantages(turns, LearnerConfig(overlong=overlong)) for overlong in ("keep", "mask"))
    np.testing.assert_array_equal(kept.advantages, masked.advantages)
    assert kept.kept.tolist() == [True, True, True]
    assert masked.kept.tolist() == [True, True, False]
    (rows,) = deal(turns, masked, LearnerConfig(overlong="mask"), 0)
    assert [len(response.ids) for row in rows for response in row.responses] == [4, 4]
