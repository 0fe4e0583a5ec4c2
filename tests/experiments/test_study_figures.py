"""Figures over seeds, and what the plain answers make of them."""

from __future__ import annotations

import numpy as np
import pytest
from episodes import episode, malformed, question, step, stop
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.evaluation_folder import row_of
from experiments.measures import columns, count, interval
from experiments.studies.answers import FAILS, HOLDS, OPEN, PAPER_POINTS, _factor, _outcome, _stopping, beside, negative, points, verdict
from experiments.studies.confusion import routing_confusion, together
from experiments.studies.curves import over_seeds
from experiments.studies.plan import STEP_GRPO
from experiments.studies.seeds import figure, mean_over_seeds, p_value
from rollout.records import GoldStep, Question

NAME = "exact_match"
right = st.lists(st.lists(st.booleans(), min_size=12, max_size=12), min_size=1, max_size=4)
number = st.floats(-1, 1, allow_nan=False)


def counted(seeds) -> list[list[dict[str, tuple[float, float]]]]:
    return [[{NAME: (float(value), 1.0)} for value in questions] for questions in seeds]


def found(value: float, low: float, high: float, *seeds: float) -> dict:
    return {"value": value, "low": low, "high": high, "seeds": list(seeds)}


@settings(deadline=None, max_examples=20)
@given(right)
def test_a_figure_lies_in_its_interval_and_is_the_mean_of_its_seeds(seeds):
    overall = figure(counted(seeds), NAME)
    assert overall.low <= overall.value <= overall.high
    assert overall.value == pytest.approx(np.mean(seeds))
    assert overall.seeds == tuple(pytest.approx(np.mean(questions)) for questions in seeds)


@settings(deadline=None, max_examples=20)
@given(right, right)
def test_a_paired_difference_turned_round_is_its_negative(first, second):
    seeds = min(len(first), len(second))
    a, b = counted(first[:seeds]), counted(second[:seeds])
    there, back = figure(a, NAME, minus=b), figure(b, NAME, minus=a)
    assert (there.value, there.low, there.high) == pytest.approx((-back.value, -back.high, -back.low))
    assert figure(a, NAME, minus=a).value == figure(a, NAME, minus=a).high == 0


def test_one_seed_is_as_sure_as_the_questions_alone_and_seeds_that_differ_are_less_sure():
    rng = np.random.default_rng(1)
    (one,) = counted([rng.random(200) < 0.6])
    alone = interval(columns(one, NAME), seed=0)
    single = figure([one], NAME)
    assert (single.low, single.high) == pytest.approx((alone.low, alone.high), abs=0.015)
    alike, apart = (counted([rng.random(200) < share for share in shares]) for shares in ((0.6, 0.6, 0.6), (0.3, 0.6, 0.9)))
    widths = [figure(counts, NAME).high - figure(counts, NAME).low for counts in (alike, apart)]
    assert widths[1] > 2 * widths[0]


def test_a_difference_needs_the_same_seeds_and_questions():
    with pytest.raises(ValueError, match=r"same seeds and questions: \(1, 3\) and \(1, 2\)"):
        figure(counted([[1, 0, 1]]), NAME, minus=counted([[1, 0]]))


def test_what_was_not_measured_is_none_and_not_zero():
    nothing = figure([[{NAME: (0.0, 0.0)}]], NAME)
    assert (nothing.value, nothing.seeds) == (None, (None,))
    assert verdict(nothing.rounded()) == "not measured yet"


def test_questions_that_are_better_in_all_seeds_are_found_by_the_permutation_test():
    worse, better = counted([[0] * 40] * 3), counted([[1] * 30 + [0] * 10] * 3)
    assert p_value(better, worse, NAME) < 0.001
    assert p_value(worse, worse, NAME) == 1.0


def test_the_interval_of_figures_by_seed_is_students():
    overall = mean_over_seeds([0.1, 0.2, 0.3])
    assert overall.value == pytest.approx(0.2)
    assert overall.high - overall.value == pytest.approx(4.3027 * 0.1 / np.sqrt(3), rel=1e-4)
    assert mean_over_seeds([0.5]).low is None


@settings(deadline=None)
@given(st.tuples(number, number).map(sorted), st.lists(number, min_size=1, max_size=3), st.booleans())
def test_the_words_follow_the_interval(ends, seeds, less):
    low, high = ends
    claim = verdict(found((low + high) / 2, low, high, *seeds), less=less)
    if claim == HOLDS:
        assert (high < 0 and all(v < 0 for v in seeds)) if less else (low > 0 and all(v > 0 for v in seeds))
    elif claim == FAILS:
        assert (low > 0 and all(v > 0 for v in seeds)) if less else (high < 0 and all(v < 0 for v in seeds))
    else:
        assert claim == OPEN
        agreeing = all(v > 0 for v in seeds) or all(v < 0 for v in seeds)
        assert low <= 0 <= high or not agreeing or (low > 0) != (seeds[0] > 0)


@settings(deadline=None)
@given(st.tuples(number, number).map(sorted), st.lists(number, min_size=1, max_size=3))
def test_a_claim_and_its_opposite_never_hold_both(ends, seeds):
    figures = found(sum(ends) / 2, *ends, *seeds)
    assert {verdict(figures), verdict(negative(figures))} in ({HOLDS, FAILS}, {OPEN})
    assert verdict(negative(figures)) == verdict(figures, less=True)


@settings(deadline=None)
@given(st.tuples(number, number).map(sorted))
def test_a_number_of_the_paper_is_called_less_only_when_the_whole_interval_is_above_it(ends):
    low, high = ends
    said = beside(found(0.0, low, high), PAPER_POINTS)
    assert said.startswith("more than") == (100 * low > 7)
    assert said.startswith("less than") == (100 * high < 7)
    assert "7" in said


def test_points_are_hundredths():
    assert points(found(0.123, 0.098, 0.149)) == "+12.3 points [+9.8, +14.9]"


def swept(factor: str, value: float, way: float, low: float = -1, high: float = 1) -> dict:
    against = {"f1_recall": found(value - 0.5, low, high, value - 0.5)} if factor else {}
    figures = {"f1_recall": found(value, 0, 1)}
    return {"factor": factor, "value": "0.4", "figures": figures, "against_default": against, "on_the_way": way}


def test_the_seeds_of_the_default_are_the_yardstick_of_the_sweep():
    seeds = {"a": swept("", 0.5, 0.7), "b": swept("", 0.56, 0.72)}
    say = lambda point: _factor({"sweep": {**seeds, "c": point}}, "epsilon").verdict  # noqa: E731
    assert say(swept("epsilon", 0.52, 0.71)) == OPEN
    assert say(swept("epsilon", 0.54, 0.71, 0.01, 0.07)) == OPEN  # surely above zero, but seeds lie as far apart
    assert say(swept("epsilon", 0.60, 0.71, 0.07, 0.13)) == "0.4 ends higher"
    assert say(swept("epsilon", 0.40, 0.60, -0.13, -0.07)) == "0.4 ends lower, 0.4 learns slower"
    assert say(swept("epsilon", 0.52, 0.74)) == "0.4 learns faster"
    alone = _factor({"sweep": {"a": seeds["a"], "c": swept("epsilon", 0.9, 0.9, 0.3, 0.5)}}, "epsilon")
    assert alone.verdict == "not measured yet"


TWO = Question(
    "q9", "?", ("x",), None, (GoldStep("What is Ab in Cd?", "text", "Ef"), GoldStep("How big was Gh in Ij?", "table", "3")), "two"
)


def test_a_plan_turn_counts_where_it_went_and_what_would_have_been_right():
    first, second = question(0), question(1)
    episodes = [
        episode(first, step("text", "Tasla"), stop(), answer="Tasla"),
        episode(second, step("table", "unknown"), malformed(), answer=""),
        episode(TWO, stop(), answer="x"),
    ]
    rows = [row_of([found], [count(found, {})]) for found in episodes]
    gold = {q.id: q.gold_steps for q in (first, second, TWO)}
    matrix = routing_confusion(rows, gold, max_steps=3)
    assert matrix == {
        "stop": {"stop": 1},
        "table or text": {"stop": 1},
        "text": {"malformed": 1, "table": 1, "text": 1},
    }
    assert routing_confusion(rows[1:2], gold, max_steps=1) == {"text": {"table": 1}}  # no turn was left to stop
    assert together([matrix, matrix])["text"] == {"malformed": 2, "table": 2, "text": 2}


def test_curves_begin_before_training_and_end_where_all_seeds_have_been():
    curves = [{"arm": "a", "seed": seed, "points": {"m": [[100, 0.5], [end, 1.0]]}} for seed, end in ((0, 200), (1, 400))]
    turns, mean, low, high = over_seeds(curves, "a", "m", start=0.0)
    assert (turns[0], turns[-1]) == (0, 200)
    assert mean[0] == 0
    assert (low <= mean).all()
    assert (mean <= high).all()
    assert high[-1] == 1.0
    assert over_seeds(curves, "b", "m") is None


def courses(validation: tuple[float, float, float], routing: tuple[float, float, float]) -> dict:
    """Outcome GRPO minus Step-GRPO on the way: (value, low, high) of each."""
    of = lambda value, low, high: {"against_step": {"value": value, "low": low, "high": high, "seeds": [low, high]}}  # noqa: E731
    return {"on_the_way": {"validation_f1_recall": {"outcome_grpo": of(*validation)}, "routing": {"outcome_grpo": of(*routing)}}}


def test_who_learns_faster_is_judged_by_answers_and_not_by_what_one_of_the_rewards_pays_for():
    results = {"against_step": {}, **courses(validation=(-0.01, -0.04, 0.02), routing=(-0.07, -0.08, -0.06))}
    faster = _outcome(results)[1]
    assert faster.verdict == OPEN
    assert "+1.0 points [-2.0, +4.0] of F1-Recall on the validation questions (cannot be told apart)" in faster.says
    assert "+7.0 points [+6.0, +8.0] of routing accuracy of sampled plan turns (holds)" in faster.says
    assert "no proof of faster learning" in faster.says
    assert _outcome({"against_step": {}, **courses((-0.05, -0.06, -0.04), (0.0, -0.1, 0.1))})[1].verdict == HOLDS
    assert _outcome({"against_step": {}, "on_the_way": {"validation_f1_recall": {}, "routing": {}}})[1].verdict == "not measured yet"


def test_that_never_stopping_searches_more_is_no_finding():
    less = {"value": -1.6, "low": -1.7, "high": -1.5, "seeds": [-1.6]}
    better = {"value": 0.4, "low": 0.3, "high": 0.5, "seeds": [0.4]}
    against = {STEP_GRPO: {"never_stop": {"retrievals_per_question": less, "f1_recall": better}}}
    found = _stopping({"against_methods": against})
    assert found.verdict == "by construction"
    assert "+40.0 points" in found.says
    assert "no price of searching on alone" in found.says
    assert _stopping({"against_methods": {}}).verdict == "not measured yet"
