"""Baselines and normalisations by their definitions, written out for one group at a time."""

import numpy as np
import pytest
from choices import CHOICES
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from learner.objective.advantages import BASELINES, Groups, component_advantages, group_advantages

REWARDS = arrays(np.float64, st.integers(1, 40), elements=st.sampled_from(np.linspace(0, 1, 11).tolist()))
KEYS = st.lists(st.sampled_from("abcd"), min_size=40, max_size=40)


def test_every_choice_of_the_configuration_has_its_function():
    assert set(CHOICES["baseline"]) == set(BASELINES)


@given(REWARDS, KEYS)
def test_leave_one_out_compares_with_the_mean_of_the_others(rewards, keys):
    keys = np.array(keys[: len(rewards)])
    found = group_advantages(rewards, keys, "none", "leave_one_out")
    for i, key in enumerate(keys):
        others = [reward for j, reward in enumerate(rewards) if keys[j] == key and j != i]
        if others and np.ptp(rewards[keys == key]):
            assert found.advantages[i] == pytest.approx(rewards[i] - np.mean(others), abs=1e-6)
        else:
            assert found.advantages[i] == 0


@given(REWARDS, KEYS)
def test_leave_one_out_is_the_distance_to_the_mean_times_n_over_n_minus_one(rewards, keys):
    keys = np.array(keys[: len(rewards)])
    size = np.array([(keys == key).sum() for key in keys])
    plain = group_advantages(rewards, keys, "none").advantages
    np.testing.assert_allclose(
        group_advantages(rewards, keys, "none", "leave_one_out").advantages, plain * size / np.maximum(size - 1, 1), atol=1e-6
    )


def shrunk_by_hand(rewards: np.ndarray, keys: np.ndarray, i: int) -> float:
    """The baseline of reward i, from the paper's definition."""
    mine = [reward for j, reward in enumerate(rewards) if keys[j] == keys[i] and j != i]
    others = [rewards[keys == key] for key in sorted(set(keys)) if key != keys[i]]
    if not others:
        return float(np.mean(mine)) if mine else float(rewards[i])
    means = np.array([group.mean() for group in others])
    variances = [group.var(ddof=1) / len(group) for group in others if len(group) > 1]
    within = np.mean(variances) if variances else 0.0
    share = within / (within + means.var() + 1e-6)
    return float((1 - share) * np.mean(mine) + share * means.mean()) if mine else float(means.mean())


@given(REWARDS, KEYS)
def test_the_shrunk_baseline_is_the_james_stein_mixture_of_group_and_batch(rewards, keys):
    keys = np.array(keys[: len(rewards)])
    found = BASELINES["shrunk"](Groups.of(rewards, keys))
    np.testing.assert_allclose(found, [shrunk_by_hand(rewards, keys, i) for i in range(len(rewards))], atol=1e-9)


@given(REWARDS, KEYS, st.integers(0, 39), st.floats(-3, 3))
def test_no_unbiased_baseline_depends_on_the_reward_that_it_is_for(rewards, keys, i, other):
    i, keys = i % len(rewards), np.array(keys[: len(rewards)])
    if (keys == keys[i]).sum() == 1 and len(set(keys)) == 1:
        return  # nothing to compare with
    changed = rewards.copy()
    changed[i] = other
    for name in ("leave_one_out", "shrunk"):
        if name == "leave_one_out" and (keys == keys[i]).sum() == 1:
            continue
        before, after = (BASELINES[name](Groups.of(r, keys))[i] for r in (rewards, changed))
        assert before == pytest.approx(after, abs=1e-9)


def test_groups_that_are_alike_borrow_from_each_other_and_groups_that_differ_do_not():
    noise = np.random.default_rng(0).normal(size=(50, 2))
    keys = np.repeat([f"g{i}" for i in range(50)], 2)
    alike = BASELINES["shrunk"](Groups.of(noise.ravel(), keys))
    apart = BASELINES["shrunk"](Groups.of((noise + 100 * np.arange(50)[:, None]).ravel(), keys))
    own = BASELINES["leave_one_out"](Groups.of(noise.ravel(), keys))
    assert np.abs(alike).mean() < 0.7 * np.abs(own).mean()
    np.testing.assert_allclose(apart, own + 100 * np.repeat(np.arange(50), 2), atol=0.5)


def test_a_shrunk_baseline_is_nearer_to_the_true_mean_of_small_groups():
    random = np.random.default_rng(1)
    true = random.normal(0, 0.3, 400)
    rewards = true[:, None] + random.normal(size=(400, 3))
    keys = np.repeat([f"g{i}" for i in range(400)], 3)

    def error(name: str) -> float:
        return float(((BASELINES[name](Groups.of(rewards.ravel(), keys)) - np.repeat(true, 3)) ** 2).mean())

    assert error("shrunk") < 0.5 * error("leave_one_out")


def test_with_a_shrunk_baseline_single_turns_are_compared_with_the_batch():
    found = group_advantages(np.array([1.0, 0.0, 0.5]), list("abc"), "none", "shrunk")
    np.testing.assert_allclose(found.advantages, [0.75, -0.75, 0.0], atol=1e-6)
    assert found.dropped == 1


@given(REWARDS, KEYS)
def test_the_batch_scale_keeps_the_relation_between_groups(rewards, keys):
    keys = keys[: len(rewards)]
    plain, scaled = (group_advantages(rewards, keys, name) for name in ("none", "batch_std"))
    np.testing.assert_allclose(scaled.advantages * (rewards.std() + 1e-6), plain.advantages, atol=1e-5)


PARTS = st.lists(st.fixed_dictionaries({"a": st.sampled_from([0.0, 1.0]), "b": st.sampled_from([0.0, 0.5, 1.0])}), min_size=1, max_size=40)


@given(PARTS, KEYS)
def test_components_are_normalised_each_for_itself_then_added_then_normalised_over_the_batch(parts, keys):
    keys = np.array(keys[: len(parts)])
    total = np.zeros(len(parts))
    for name in "ab":
        values = np.array([part[name] for part in parts])
        for key in set(keys):
            inside = values[keys == key]
            if inside.std() > 0:
                total[keys == key] += (inside - inside.mean()) / (inside.std() + 1e-6)
    found = component_advantages(parts, keys)
    cancels = total.std() < 1e-4
    expected = np.zeros(len(total)) if cancels else (total - total.mean()) / (total.std() + 1e-6)
    np.testing.assert_allclose(found.advantages, expected, atol=1e-3)
    flat = [key for key in set(keys) if all(np.ptp([p[n] for p, k in zip(parts, keys, strict=True) if k == key]) == 0 for n in "ab")]
    assert found.dropped == (len(set(keys)) if cancels else len(flat))
    assert found.groups == len(set(keys))


def test_components_tell_mixtures_apart_that_have_the_same_total_in_different_groups():
    """The paper's example: of two siblings, one earns one of two parts, or both; by the total, both groups look alike."""
    groups = list("aabb")
    parts = [{"x": 0, "y": 0}, {"x": 1, "y": 0}, {"x": 0, "y": 0}, {"x": 1, "y": 1}]
    by_total = group_advantages(np.array([sum(part.values()) for part in parts], float), groups).advantages
    by_parts = component_advantages(parts, groups).advantages
    assert by_total[1] == pytest.approx(by_total[3], abs=1e-3)
    assert by_parts[3] == pytest.approx(2 * by_parts[1], rel=1e-3)


def test_no_turns_have_no_advantages():
    for name in ("std", "batch_std", "none"):
        assert group_advantages(np.zeros(0), [], name).groups == 0
    assert component_advantages([], []).advantages.shape == (0,)
