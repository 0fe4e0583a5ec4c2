"""What is counted in an episode, and how sure a figure is."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from episodes import RETRIEVERS, STOP, episode, malformed, question, recorded, static, step, stop, turn

from experiments.evaluation.metrics import Counts
from experiments.evaluation.metrics import count as count_episode
from experiments.evaluation.significance import excludes_zero, paired_difference, summarise
from rollout.nan_check import NotFiniteError
from rollout.records import GoldStep, Trajectory


def count(trajectory: Trajectory) -> Counts:
    return count_episode(trajectory, {name: kb for kb, name in RETRIEVERS.items()})


def test_an_episode_that_routes_right_and_stops_counts_as_such():
    counts = count(episode(question(), step("text", "Tasla"), stop(), answer="Tasla"))
    assert counts["f1_recall"] == counts["exact_match"] == (1, 1)
    assert counts["routing_accuracy"] == (1, 1)
    assert counts["stop_accuracy"] == (1, 1)
    assert counts["premature_stop_rate"] == (0, 1)
    assert counts["retrievals_per_question"] == (1, 1)
    assert counts["format_rate"] == (4, 4)


def test_wrong_routes_going_on_and_stopping_early_are_told_apart():
    wandering = count(episode(question(), step("table", "unknown"), step("text", "Tasla"), step("table", "unknown"), answer="Tasla"))
    assert wandering["routing_accuracy"] == (1, 2)
    assert wandering["stop_accuracy"] == (0, 1)
    early = count(episode(question(), stop(), answer="Runo"))
    assert early["routing_accuracy"] == (0, 1)
    assert early["premature_stop_rate"] == (1, 1)
    assert early["stop_accuracy"] == (0, 0)
    assert early["f1_recall"] == (0, 1)


def test_malformed_turns_lower_the_format_rate_and_route_nowhere():
    counts = count(episode(question(), malformed(), answer=""))
    assert counts["format_rate"] == (0, 2)
    assert counts["routing_accuracy"] == (0, 1)
    assert counts["premature_stop_rate"] == (0, 1)


def test_an_episode_whose_search_failed_counts_nowhere_and_one_that_was_broken_off_is_wrong():
    right = episode(question(), step("text", "Tasla"), stop(), answer="Tasla")
    assert count(dataclasses.replace(right, search_errors=1)) == {}
    assert count(dataclasses.replace(right, answer="", final=None, error="its prompt is too long"))["f1_recall"] == (0, 1)


def test_static_retrieval_is_measured_by_its_answer_and_its_cost_alone():
    counts = count(static(question(), answer="Tasla"))
    assert counts["f1_recall"] == (1, 1)
    assert counts["retrievals_per_question"] == (3, 1)
    assert counts["format_rate"] == (1, 1)
    assert counts["routing_accuracy"] == counts["stop_accuracy"] == (0, 0)


def test_recorded_turns_are_measured_one_by_one():
    ask, stopping = GoldStep("who directed it?", "text", ""), GoldStep("None", "", "")
    asked = "<think>a</think><sub-question>who?</sub-question><ret>Text Retriever</ret>"
    assert count(recorded("plan", ask, asked))["routing_accuracy"] == (1, 1)
    assert count(recorded("plan", stopping, STOP))["stop_accuracy"] == (1, 1)
    assert count(recorded("plan", ask, STOP))["premature_stop_rate"] == (1, 1)
    assert count(recorded("final", GoldStep("", "", "yes"), "<think>a</think><answer>Yes.</answer>"))["exact_match"] == (1, 1)
    assert count(recorded("answer", GoldStep("", "", "yes"), "yes"))["format_rate"] == (0, 1)


def test_an_interval_holds_the_value_and_narrows_with_more_questions():
    rng = np.random.default_rng(0)

    def interval(n: int):
        answers = ["Tasla" if right else "Runo" for right in rng.random(n) < 0.7]
        return summarise([count(episode(question(), step("text", "Tasla"), answer=answer)) for answer in answers])["f1_recall"]

    few, many = interval(50), interval(800)
    assert few["low"] <= few["value"] <= few["high"]
    assert many["high"] - many["low"] < (few["high"] - few["low"]) / 2.5
    assert many["low"] < 0.7 < many["high"]


def test_the_paired_difference_is_surer_than_two_intervals():
    right, wrong = (count(episode(question(), answer=answer)) for answer in ("Tasla", "Runo"))
    before = [right] * 50 + [wrong] * 50
    after = [right] * 60 + [wrong] * 40
    difference = paired_difference(before, after)["f1_recall"]
    assert difference["value"] == pytest.approx(0.1)
    assert excludes_zero(difference)
    assert summarise(before)["f1_recall"]["high"] > summarise(after)["f1_recall"]["low"]


def test_what_could_not_be_measured_has_no_value():
    assert math.isnan(summarise([count(episode(question(), stop(), answer="Runo"))])["stop_accuracy"]["value"])
    assert math.isnan(summarise([])["f1_recall"]["value"])


def test_a_count_that_is_no_number_is_not_taken_for_one_that_was_not_measured():
    counts = [{"f1_recall": (1.0, 1.0)}, {"f1_recall": (float("nan"), 1.0)}]
    with pytest.raises(NotFiniteError, match="the counts of f1_recall: question 2 is nan"):
        summarise(counts)


def test_a_paired_difference_refuses_different_questions():
    with pytest.raises(ValueError, match="1 before, 0 after"):
        paired_difference([count(episode(question(), answer="Tasla"))], [])


def test_a_stop_that_a_method_overrules_is_no_decision_to_be_judged():
    """`never_stop` after the policy stopped: the search is counted, its route and the stop are not."""
    forced = dataclasses.replace(step("table", "unknown"), plan=turn("plan", STOP))
    early = count(episode(question(), forced, answer="Tasla"))
    assert early["routing_accuracy"] == early["stop_accuracy"] == early["premature_stop_rate"] == (0, 0)
    assert early["retrievals_per_question"] == (1, 1)
    late = count(episode(question(), step("text", "Tasla"), forced, answer="Tasla"))
    assert (late["routing_accuracy"], late["stop_accuracy"]) == ((1, 1), (0, 0))
    own = count(episode(question(), step("text", "Tasla"), step("table", "unknown"), answer="Tasla"))
    assert own["stop_accuracy"] == (0, 1)  # it went on by itself
