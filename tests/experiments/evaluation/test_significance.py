"""Paired tests: sure where there is a difference, and as often wrong as they say where there is none."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from experiments.evaluation.metrics import averaged
from experiments.evaluation.significance import holm, permutation_p


def results(right) -> list[dict[str, tuple[float, float]]]:
    return [{"exact_match": (float(value), 1.0)} for value in right]


def test_a_clear_difference_is_found_and_none_is_not():
    before, after = results([0] * 30 + [1] * 30), results([1] * 30 + [1] * 30)
    assert permutation_p(before, after, "exact_match") < 0.001
    assert permutation_p(before, before, "exact_match") == 1.0


def test_the_permutation_test_of_right_and_wrong_answers_agrees_with_the_exact_one():
    gained, lost = 14, 5
    before = results([0] * gained + [1] * lost + [1] * 40)
    after = results([1] * gained + [0] * lost + [1] * 40)
    exact = binomtest(gained, gained + lost).pvalue
    assert permutation_p(before, after, "exact_match") == pytest.approx(exact, abs=0.012)


def test_two_equal_methods_are_called_different_about_as_often_as_the_level_says():
    rng = np.random.default_rng(0)
    called = sum(permutation_p(*(results(rng.random(60) < 0.5) for _ in range(2)), "exact_match") < 0.1 for _ in range(80))
    assert called <= 16  # 8 are expected; more than 16 has a chance of one in 200


def test_a_ratio_is_permuted_with_its_denominator():
    few, many = {"routing_accuracy": (1.0, 1.0)}, {"routing_accuracy": (0.0, 9.0)}
    assert permutation_p([few] * 20, [many] * 20, "routing_accuracy") < 0.01
    assert math.isnan(permutation_p([few] * 20, [{}] * 20, "routing_accuracy"))


def test_different_questions_are_refused():
    with pytest.raises(ValueError, match="1 before, 0 after"):
        permutation_p(results([1]), [], "exact_match")


@given(st.dictionaries(st.text(max_size=3), st.floats(0, 1), max_size=6))
def test_corrected_p_values_are_never_smaller_and_keep_their_order(p_values):
    corrected = holm(p_values)
    assert all(p_values[name] <= corrected[name] <= 1.0 for name in p_values)
    assert corrected.keys() == p_values.keys()
    order = sorted(p_values, key=lambda name: p_values[name])
    assert [corrected[name] for name in order] == sorted(corrected.values())


def test_holm_corrects_by_rank_and_leaves_out_what_could_not_be_tested():
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": math.nan}) == {
        "a": 0.03,
        "b": 0.06,
        "c": 0.06,
        "d": pytest.approx(math.nan, nan_ok=True),
    }


def test_a_question_that_was_asked_several_times_weighs_as_much_as_one_that_was_asked_once():
    after = results([0, 1, 1])
    assert [averaged([counts] * 4) for counts in after] == after


def test_a_question_that_one_of_two_could_not_be_asked_says_nothing_of_their_difference():
    before, after = results([0] * 20), results([1] * 20)
    alone = permutation_p(before, after, "exact_match")
    assert permutation_p([*before, {}, *results([1])], [*after, *results([1]), {}], "exact_match") == alone
    assert averaged([{}, *results([1])]) == averaged(results([1]))
    assert averaged([{}, {}]) == {}


@pytest.mark.parametrize("samples", [1, 4])
def test_samples_with_the_rates_of_the_other_method_are_not_called_different(samples):
    rng = np.random.default_rng(3)
    before = results(rng.random(60) < 0.5)
    same = [averaged([counts] * samples) for counts in before]
    assert permutation_p(before, same, "exact_match") == 1.0
    apart = results(rng.random(60) < 0.7)
    asked_often = [averaged([counts] * samples) for counts in apart]
    assert permutation_p(before, asked_often, "exact_match") == permutation_p(before, apart, "exact_match")
