from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from learner.config import LearnerConfig
from learner.objective.advantages import group_advantages, questions_with_variance, turn_advantages
from rewards.scored_summary import ScoredSummary
from rollout.records import ScoredTurn, Turn, TurnReward

REWARDS = arrays(np.float64, st.integers(1, 40), elements=st.sampled_from(np.linspace(0, 1, 11).tolist()))
KEYS = st.lists(st.sampled_from("abcd"), min_size=40, max_size=40)


def scored(state: str, reward: float, episode: str = "e", outcome: float | None = 0.0, question: str = "q") -> ScoredTurn:
    turn = Turn("plan", np.array([1], np.int32), np.zeros(1, np.float32), "stop", 0, "")
    return ScoredTurn(state, np.array([1], np.int32), None, turn, TurnReward(reward), episode, outcome, question)


@given(REWARDS, KEYS)
def test_advantages_of_a_group_have_mean_zero_and_where_they_vary_standard_deviation_one(rewards, keys):
    keys = np.array(keys[: len(rewards)])
    compared = group_advantages(rewards, keys)
    for key in set(keys):
        inside = compared.advantages[keys == key]
        assert abs(inside.mean()) < 1e-5
        assert inside.std() == pytest.approx(1.0 if compared.varied[keys == key].all() else 0.0, abs=1e-3)


@given(REWARDS, KEYS, st.randoms())
def test_advantages_do_not_depend_on_the_order_of_the_turns(rewards, keys, random):
    order = list(range(len(rewards)))
    random.shuffle(order)
    before = group_advantages(rewards, keys[: len(rewards)])
    after = group_advantages(rewards[order], [keys[i] for i in order])
    np.testing.assert_allclose(after.advantages, before.advantages[order], atol=1e-5)
    assert (after.groups, after.dropped) == (before.groups, before.dropped)


@given(REWARDS, KEYS, st.floats(0.5, 20), st.floats(-5, 5))
def test_normalised_advantages_are_the_same_on_every_scale_of_the_reward(rewards, keys, scale, shift):
    keys = keys[: len(rewards)]
    np.testing.assert_allclose(
        group_advantages(scale * rewards + shift, keys).advantages, group_advantages(rewards, keys).advantages, atol=1e-3
    )


@given(REWARDS, KEYS)
def test_groups_never_mix(rewards, keys):
    keys = np.array(keys[: len(rewards)])
    together = group_advantages(rewards, keys)
    for key in set(keys):
        alone = group_advantages(rewards[keys == key], keys[keys == key])
        np.testing.assert_allclose(alone.advantages, together.advantages[keys == key], atol=1e-6)


@given(REWARDS, KEYS)
def test_a_group_without_variance_is_dropped_and_counted(rewards, keys):
    keys = np.array(keys[: len(rewards)])
    compared = group_advantages(rewards, keys)
    flat = [key for key in set(keys) if np.ptp(rewards[keys == key]) == 0]
    assert compared.dropped == len(flat)
    assert compared.groups == len(set(keys))
    assert not compared.varied[np.isin(keys, flat)].any()
    assert compared.varied[~np.isin(keys, flat)].all()
    assert (compared.advantages[~compared.varied] == 0).all()


def test_without_normalisation_the_advantage_is_the_distance_to_the_mean():
    np.testing.assert_allclose(group_advantages(np.array([0.0, 1.0, 1.0, 0.0]), list("aaaa"), "none").advantages, [-0.5, 0.5, 0.5, -0.5])


def test_step_grpo_compares_turns_of_one_state_by_their_own_rewards():
    turns = [scored("s", 1.0), scored("s", 0.0), scored("t", 0.3), scored("t", 0.3)]
    found = turn_advantages(turns, LearnerConfig())
    np.testing.assert_allclose(found.advantages, [1, -1, 0, 0], atol=1e-4)
    assert found.kept.tolist() == [True, True, False, False]
    assert (found.steps.groups, found.steps.dropped) == (2, 1)


def test_grpo_gives_every_turn_the_advantage_of_its_episode_and_counts_each_episode_once():
    config = LearnerConfig(step_weight=0.0, episode_weight=1.0)
    long = [scored(f"s{i}", 0.1 * i, "long", 1.0) for i in range(5)]
    short = [scored("s9", 0.9, "short", 0.0)]
    found = turn_advantages(long + short, config)
    np.testing.assert_allclose(found.advantages, [1] * 5 + [-1], atol=1e-4)
    assert found.kept.all()
    assert (found.episodes.groups, found.episodes.dropped) == (1, 0)


def test_episodes_of_different_questions_are_not_compared():
    turns = [scored("s", 0.0, "a", 1.0, "q1"), scored("s", 0.0, "b", 0.0, "q2")]
    found = turn_advantages(turns, LearnerConfig(step_weight=0.0, episode_weight=1.0))
    assert not found.kept.any()
    assert not found.advantages.any()


@given(st.floats(0.1, 2), st.floats(0.1, 2))
def test_the_two_comparisons_are_weighed(step, episode):
    turns = [scored("s", 1.0, "a", 0.0), scored("s", 0.0, "b", 1.0)]
    config = replace(LearnerConfig(), step_weight=step, episode_weight=episode)
    np.testing.assert_allclose(turn_advantages(turns, config).advantages, [step - episode, episode - step], atol=1e-4)


@pytest.mark.parametrize(
    ("normalisation", "baseline"),
    [("std", "mean"), ("std", "leave_one_out"), ("components", "mean"), ("none", "shrunk"), ("batch_std", "shrunk")],
)
def test_an_episode_without_an_outcome_is_compared_with_none_and_changes_no_comparison(normalisation, baseline):
    config = LearnerConfig(step_weight=0.0, episode_weight=1.0, normalisation=normalisation, baseline=baseline)
    whole = [scored("s", 1.0, "a", 1.0), scored("t", 0.2, "a", 1.0), scored("s", 0.5, "b", 0.0), scored("s", 0.0, "c", 0.0, "q2")]
    failed = [scored("s", 1.0, "d", None), scored("t", 0.0, "d", None)]
    found, alone = turn_advantages([*failed, *whole], config), turn_advantages(whole, config)
    assert not found.kept[:2].any()
    assert not found.advantages[:2].any()
    np.testing.assert_array_equal(found.advantages[2:], alone.advantages)
    assert (found.episodes.groups, found.episodes.dropped) == (alone.episodes.groups, alone.episodes.dropped)
    assert not turn_advantages(failed, config).kept.any()


def test_components_of_the_reward_are_compared_each_for_itself():
    def part(state, x, y):
        turn = scored(state, 0.3 * x + 0.7 * y)
        return replace(turn, reward=TurnReward(turn.reward.total, {}, {"x": 0.3 * x, "y": 0.7 * y}))

    turns = [part("s", 1, 0), part("s", 0, 1), part("t", 1, 1), part("t", 0, 0)]
    found = turn_advantages(turns, LearnerConfig(normalisation="components"))
    np.testing.assert_allclose(found.advantages[:2], 0, atol=1e-5)  # each of them is best at one thing
    assert found.advantages[2] == pytest.approx(-found.advantages[3])


def test_questions_that_taught_something_are_those_with_a_varied_group():
    turns = [scored("s", 1.0, "a", 0, "q1"), scored("s", 0.0, "a", 0, "q1"), scored("t", 1.0, "b", 0, "q2"), scored("t", 1.0, "b", 0, "q2")]
    assert questions_with_variance(ScoredSummary.of(turns), LearnerConfig()) == {"q1"}
    assert questions_with_variance(ScoredSummary.of([]), LearnerConfig()) == set()
