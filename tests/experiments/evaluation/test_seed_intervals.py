"""How sure a metric is over seeds and questions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.evaluation.significance import columns, interval, over_seeds, seeds_p

NAME = "exact_match"
right = st.lists(st.lists(st.booleans(), min_size=12, max_size=12), min_size=1, max_size=4)


def counted(seeds) -> list[list[dict[str, tuple[float, float]]]]:
    return [[{NAME: (float(value), 1.0)} for value in questions] for questions in seeds]


@settings(deadline=None, max_examples=20)
@given(right)
def test_an_estimate_lies_in_its_interval_and_is_the_mean_of_its_seeds(seeds):
    overall = over_seeds(counted(seeds), NAME)
    assert overall["low"] <= overall["value"] <= overall["high"]
    assert overall["value"] == pytest.approx(np.mean(seeds), abs=1e-5)
    assert overall["seeds"] == [pytest.approx(np.mean(questions), abs=1e-5) for questions in seeds]


@settings(deadline=None, max_examples=20)
@given(right, right)
def test_a_paired_difference_turned_round_is_its_negative(first, second):
    seeds = min(len(first), len(second))
    a, b = counted(first[:seeds]), counted(second[:seeds])
    there, back = over_seeds(a, NAME, minus=b), over_seeds(b, NAME, minus=a)
    assert (there["value"], there["low"], there["high"]) == pytest.approx((-back["value"], -back["high"], -back["low"]))
    assert over_seeds(a, NAME, minus=a)["value"] == over_seeds(a, NAME, minus=a)["high"] == 0


def test_one_seed_is_as_sure_as_the_questions_alone_and_seeds_that_differ_are_less_sure():
    rng = np.random.default_rng(1)
    (one,) = counted([rng.random(200) < 0.6])
    alone = interval(columns(one, NAME), seed=0)
    single = over_seeds([one], NAME)
    assert (single["low"], single["high"]) == pytest.approx((alone["low"], alone["high"]), abs=0.015)
    alike, apart = (counted([rng.random(200) < share for share in shares]) for shares in ((0.6, 0.6, 0.6), (0.3, 0.6, 0.9)))
    widths = [found["high"] - found["low"] for found in (over_seeds(counts, NAME) for counts in (alike, apart))]
    assert widths[1] > 2 * widths[0]


def test_a_difference_needs_the_same_seeds_and_questions():
    with pytest.raises(ValueError, match="3 before, 2 after"):
        over_seeds(counted([[1, 0, 1]]), NAME, minus=counted([[1, 0]]))


def test_what_was_not_measured_is_nan_and_not_zero():
    nothing = over_seeds([[{NAME: (0.0, 0.0)}]], NAME)
    assert np.isnan([nothing["value"], nothing["low"], nothing["high"], *nothing["seeds"]]).all()


def test_questions_that_are_better_in_all_seeds_are_found_by_the_permutation_test():
    worse, better = counted([[0] * 40] * 3), counted([[1] * 30 + [0] * 10] * 3)
    assert seeds_p(better, worse, NAME) < 0.001
    assert seeds_p(worse, worse, NAME) == 1.0
