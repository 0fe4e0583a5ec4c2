"""Values of all routes as rewards: what the query earns, and what naming the knowledge base does."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scored_episode import CAPITAL, QUESTION, RETRIEVERS, STOP, group, plan, same

from rewards.actor import score_trajectory
from rewards.config import RewardConfig
from rewards.scored_summary import ScoredSummary
from rollout.records import PlanValues, QueryValues, RouteNames, Trajectory

NAMES, IDS = tuple(RETRIEVERS), tuple(np.array([10 + i, 6], np.int32) for i in range(len(RETRIEVERS)))
WITHOUT_GOLD = replace(QUESTION, gold_steps=None)
OTHER = "What is the river of Kormu?"
VALUES = PlanValues(
    tuple(RETRIEVERS.values()),
    (
        QueryValues(CAPITAL.query, ("Tasla", "unknown", "Runo"), (0.9, 0.1, 0.3), 0.2),
        QueryValues(OTHER, ("unknown", "unknown", "unknown"), (0.1, 0.1, 0.1), 0.1),
    ),
    *(0.25, 9, 4, 5, 0, 100),
)
REGRET = RewardConfig(terms={"query_value": 2.0, "route_regret": 1.0})
TEXTS = (plan(CAPITAL.query, NAMES[0]), plan(CAPITAL.query, NAMES[2]), plan(OTHER, NAMES[1]), STOP, "Tasla!", plan("Who?", NAMES[0]))


def scored(config=REGRET, values=VALUES, question=WITHOUT_GOLD):
    siblings = group("plan", *TEXTS, question=question)
    turns = [
        replace(turn, routes=RouteNames(1, NAMES, IDS, next(i for i, name in enumerate(NAMES) if f"<ret>{name}<" in turn.text)))
        if "Retriever" in turn.text
        else turn
        for turn in siblings.turns
    ]
    return score_trajectory(
        Trajectory(question, (), None, "", (replace(siblings, turns=tuple(turns), values=values),)), same, config, RETRIEVERS
    )


def test_a_query_earns_its_best_route_over_unknown_and_a_name_what_it_lacks_to_the_best():
    right, wrong, useless, stop, malformed = scored()  # the last sibling's query was not valued: it is not judged
    assert right.reward.total == pytest.approx(2 * 0.7)
    assert (right.reward.route, wrong.reward.route) == (0.0, pytest.approx(-0.6))
    assert wrong.reward.total == pytest.approx(2 * 0.7 - 0.6)
    assert (useless.reward.total, useless.reward.route) == (0.0, 0.0)
    assert stop.reward.total == pytest.approx(2 * (0.25 - 0.15))
    assert malformed.reward.total == pytest.approx(2 * 0.0 - 0.8)  # the least of both
    assert (stop.reward.route, malformed.reward.route) == (None, None)
    assert right.route_rewards == pytest.approx((1.4, 1.4 - 0.8, 1.4 - 0.6))
    assert right.reward.components["route_regret"] == 0.0


def test_only_what_the_name_earned_is_split_off():
    columns = ScoredSummary.joined([ScoredSummary.of(scored()), ScoredSummary.of(scored())]).of_routes
    np.testing.assert_allclose(columns, 2 * [0.0, -0.6, 0.0, np.nan, np.nan])
    unsplit = ScoredSummary.of(scored(RewardConfig(terms={"query_value": 1.0, "format": 0.1})))
    assert np.isnan(unsplit.of_routes).all()


def test_a_state_whose_values_hardly_differ_or_are_unknown_is_not_judged():
    assert scored(RewardConfig(terms=REGRET.terms, min_spread=0.85)) == []
    assert len(scored(RewardConfig(terms=REGRET.terms, min_spread=0.8 - 1e-9))) == 5
    assert scored(values=None) == []
    assert scored(values=replace(VALUES, queries=(), stop=None)) == []
    others = scored(RewardConfig(terms=REGRET.terms | {"format": 0.5}), values=None)
    assert [turn.reward.total for turn in others] == [0.5, 0.5, 0.5, 0.5, 0.0, 0.5]
    assert all(len(set(turn.route_rewards)) <= 1 for turn in others)


def test_gold_steps_change_nothing():
    with_gold, without = scored(question=QUESTION), scored()
    assert [turn.reward.total for turn in with_gold] == [turn.reward.total for turn in without]
