"""Searches by what the policy knows: values worked out by hand, and how sure the interval is."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import pointbiserialr

from experiments.evaluation.significance import correlation
from experiments.evaluation.when_to_search import searches_by_knowledge


def compared(known, searches, families=None):
    without = [{"exact_match": (float(right), 1.0)} for right in known]
    policy = [{"retrievals_per_question": (float(number), 1.0)} for number in searches]
    return searches_by_knowledge(without, policy, families or ["all"] * len(without))


def test_searches_and_correlations_are_those_worked_out_by_hand():
    found = compared([1, 0, 1, 0], [0, 2, 2, 4], ["short", "short", "long", "long"])
    assert (found["questions"], found["known"]) == (4, 2)
    assert (found["searches_of_known"]["value"], found["searches_of_others"]["value"]) == (1.0, 3.0)
    assert found["correlation"]["value"] == pytest.approx(-math.sqrt(0.5))  # covariance -1/2, standard deviations 1/2 and the root of 2
    assert found["within_families"]["value"] == pytest.approx(-1.0)
    assert found["by_family"]["long"]["searches_of_others"]["value"] == 4.0
    assert found["by_family"]["long"]["correlation"]["value"] == pytest.approx(-1.0)


def test_families_that_are_easy_and_short_do_not_pass_for_a_policy_that_knows_when():
    found = compared([1, 1, 1, 0, 0, 0, 0, 1], [1, 1, 1, 1, 3, 3, 3, 3], ["short"] * 4 + ["long"] * 4)
    assert found["correlation"]["value"] == pytest.approx(-0.5)
    assert math.isnan(found["within_families"]["value"])


def test_questions_that_were_not_measured_or_have_no_answer_are_left_out():
    without = [{"exact_match": (1.0, 1.0)}, {}, {"exact_match": (0.0, 0.0)}, {"exact_match": (0.0, 1.0)}, {"exact_match": (1.0, 1.0)}]
    policy = [*({"retrievals_per_question": (number, 1.0)} for number in (1.0, 9.0, 9.0, 2.0)), {}]
    found = searches_by_knowledge(without, policy, ["a", "a", "b", "a", "a"])
    assert (found["questions"], found["known"], list(found["by_family"])) == (2, 1, ["a"])
    assert math.isnan(searches_by_knowledge([], [], [])["correlation"]["value"])


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 4)), min_size=2, max_size=30))
def test_the_correlation_is_the_point_biserial_one_within_its_interval_s_range(pairs):
    known, searches = np.array(pairs, float).T
    found = correlation(known, searches)
    if len(set(known)) == 1 or len(set(searches)) == 1:
        assert math.isnan(found["value"])
    else:
        assert found["value"] == pytest.approx(pointbiserialr(known, searches).statistic, abs=1e-9)
        assert -1 - 1e-9 <= found["low"] <= found["high"] <= 1 + 1e-9


def test_the_interval_excludes_zero_where_it_should_and_about_as_often_as_it_says_where_it_should_not():
    rng = np.random.default_rng(0)
    sure = 0
    for _ in range(60):
        known, searches = rng.random(80) < 0.4, rng.poisson(1.5, 80)
        found = correlation(known, searches)
        sure += found["low"] > 0 or found["high"] < 0
    assert sure <= 9  # 3 are expected; more than 9 has a chance of one in 1,000
    assert correlation(known, rng.poisson(np.where(known, 0.5, 2.0)))["high"] < 0
