from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from learner.advantages import STEP_COMPARISONS, group_advantages, taught_questions, turn_advantages
from learner.config import CHOICES, LearnerConfig
from learner.returns import discounted_returns
from rollout.records import ScoredTurn, Turn, TurnReward

REWARDS = arrays(np.float64, st.integers(1, 40), elements=st.sampled_from(np.linspace(0, 1, 11).tolist()))
KEYS = st.lists(st.sampled_from("abcd"), min_size=40, max_size=40)


def scored(state: str, reward: float, episode: str = "e", outcome: float = 0.0, question: str = "q") -> ScoredTurn:
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
    assert (found.groups, found.dropped_groups) == (2, 1)


def test_grpo_gives_every_turn_the_advantage_of_its_episode_and_counts_each_episode_once():
    config = LearnerConfig(step_weight=0.0, episode_weight=1.0)
    long = [scored(f"s{i}", 0.1 * i, "long", 1.0) for i in range(5)]
    short = [scored("s9", 0.9, "short", 0.0)]
    found = turn_advantages(long + short, config)
    np.testing.assert_allclose(found.advantages, [1] * 5 + [-1], atol=1e-4)
    assert found.kept.all()
    assert (found.episode_groups, found.dropped_episode_groups) == (1, 0)


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


def gigpo_by_hand(turns, discount, step_weight, episode_weight):
    """The paper's algorithm, one trajectory at a time: episode advantage + weight * step advantage, population standard deviations."""
    episodes = {t.episode: [u for u in turns if u.episode == t.episode] for t in turns}
    returns = {}
    for mine in episodes.values():
        for t, turn in enumerate(mine):
            returns[id(turn)] = sum(discount ** (k - t) * mine[k].reward.total for k in range(t, len(mine)))

    def compared(value, peers):
        peers = np.array(peers)
        return (value - peers.mean()) / (peers.std() + 1e-6) if peers.std() > 1e-4 else 0.0

    found = []
    for turn in turns:
        anchor = [returns[id(u)] for u in turns if (u.state_key, u.episode_group) == (turn.state_key, turn.episode_group)]
        outcomes = [mine[0].outcome for mine in episodes.values() if mine[0].episode_group == turn.episode_group]
        found.append(step_weight * compared(returns[id(turn)], anchor) + episode_weight * compared(turn.outcome, outcomes))
    return found


def test_gigpo_compares_what_came_of_equal_states_of_one_question():
    random = np.random.default_rng(0)
    turns = [
        scored(state, float(random.random()), f"q{q}#{e}", float(e % 2), f"q{q}")
        for q in range(3)
        for e in range(4)
        for state in ["start", *random.choice(["s", "t", "u"], random.integers(0, 3), replace=False), "end"]
    ]
    config = LearnerConfig(step_comparison="return", discount=0.9, step_weight=0.8, episode_weight=1.0)
    np.testing.assert_allclose(turn_advantages(turns, config).advantages, gigpo_by_hand(turns, 0.9, 0.8, 1.0), atol=1e-4)


def test_equal_states_of_two_questions_are_no_anchor_for_each_other():
    turns = [scored("s", 1.0, "a", 1.0, "q1"), scored("s", 0.0, "b", 0.0, "q2")]
    assert not turn_advantages(turns, LearnerConfig(step_comparison="return")).kept.any()
    assert turn_advantages(turns, LearnerConfig()).kept.all()


@given(arrays(np.float64, st.integers(0, 20), elements=st.floats(-1, 1)), st.floats(0, 1), st.randoms())
def test_the_return_of_a_turn_is_the_discounted_sum_of_what_its_episode_earned_from_there(rewards, discount, random):
    episodes = [random.choice("ab") for _ in rewards]
    found = discounted_returns(rewards, episodes, discount)
    for i, value in enumerate(found):
        later = [rewards[j] for j in range(i, len(rewards)) if episodes[j] == episodes[i]]
        assert value == pytest.approx(sum(discount**k * reward for k, reward in enumerate(later)), abs=1e-9)


def test_components_of_the_reward_are_compared_each_for_itself():
    def part(state, x, y):
        turn = scored(state, 0.3 * x + 0.7 * y)
        return replace(turn, reward=TurnReward(turn.reward.total, {}, {"x": 0.3 * x, "y": 0.7 * y}))

    turns = [part("s", 1, 0), part("s", 0, 1), part("t", 1, 1), part("t", 0, 0)]
    found = turn_advantages(turns, LearnerConfig(normalisation="components"))
    np.testing.assert_allclose(found.advantages[:2], 0, atol=1e-5)  # each of them is best at one thing
    assert found.advantages[2] == pytest.approx(-found.advantages[3])
    weighed = turn_advantages(turns, LearnerConfig(normalisation="components", component_weights={"y": 2.0}))
    assert weighed.advantages[1] > 0 > weighed.advantages[0]


def test_questions_that_taught_something_are_those_with_a_varied_group():
    turns = [scored("s", 1.0, "a", 0, "q1"), scored("s", 0.0, "a", 0, "q1"), scored("t", 1.0, "b", 0, "q2"), scored("t", 1.0, "b", 0, "q2")]
    assert taught_questions(turns, LearnerConfig()) == {"q1"}
    assert taught_questions([], LearnerConfig()) == set()


def test_every_step_comparison_of_the_configuration_has_its_function():
    assert set(CHOICES["step_comparison"]) == set(STEP_COMPARISONS)
