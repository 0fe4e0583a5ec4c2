"""Credit by the values of all routes: each part of a plan turn's reward to the tokens that decided."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from asking_turns import asking_turns
from local_rows import dealt_rows

from learner.config import LearnerConfig
from learner.objective.advantages import turn_advantages
from learner.objective.losses import RouteTokens, route_loss
from rollout.records import ScoredTurn, Turn, TurnReward

Q = (0.96, 0.31, -0.02, 0.31)
QUERY_PART = 0.7


def rewards_of(values):
    """What the terms make of the values: the query's part, and the regret of each route."""
    return [QUERY_PART + value - max(values) for value in values]


def exact_gradient(logits: torch.Tensor) -> torch.Tensor:
    """Autograd of the expected value, sum_k pi_k Q_k."""
    leaf = logits.clone().requires_grad_()
    (leaf.softmax(0) * torch.tensor(Q, dtype=torch.float64)).sum().backward()
    return leaf.grad


def test_the_gradient_over_all_routes_is_that_of_the_expected_value():
    for seed in range(5):
        logits = torch.randn(4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        leaf, rewards = logits.log_softmax(0).requires_grad_(), torch.tensor(rewards_of(Q), dtype=torch.float64)
        turns = RouteTokens(leaf, torch.arange(4), torch.zeros(4, dtype=torch.long), rewards, torch.ones(1, dtype=torch.float64))
        (of_logprobs,) = torch.autograd.grad(route_loss(turns, 1.0)[0], leaf)
        of_logits = -(of_logprobs - logits.softmax(0) * of_logprobs.sum())  # through log_softmax
        torch.testing.assert_close(of_logits, exact_gradient(logits), atol=1e-6, rtol=0)


def test_the_mean_over_sampled_siblings_converges_to_it():
    logits = torch.tensor([-0.5, 0.4, 0.9, 0.0], dtype=torch.float64)
    pi, rewards = logits.softmax(0).numpy(), rewards_of(Q)
    drawn = np.random.default_rng(0).choice(4, (2500, 8), p=pi)
    turns = [
        ScoredTurn(f"s{i}", np.array([1], np.int32), None, TURN, TurnReward(rewards[kb], route=rewards[kb] - QUERY_PART), "e", None, "q")
        for i, siblings in enumerate(drawn)
        for kb in siblings
    ]
    found = turn_advantages(turns, LearnerConfig(normalisation="none", baseline="leave_one_out"))
    assert not found.advantages.any()  # siblings with the same query: nothing for the tokens before the name
    each = found.names[:, None].astype(np.float64) * (np.eye(4)[drawn.ravel()] - pi)
    errors = each.reshape(2500, 8, 4).mean(1).std(0) / np.sqrt(2500)
    assert (np.abs(each.mean(0) - exact_gradient(logits).numpy()) < 4 * errors).all()
    assert errors.max() < 0.004


TURN = Turn("plan", np.array([5, 6], np.int32), np.zeros(2, np.float32), "stop", 0, "")


@pytest.mark.parametrize("routes", ["sampled", "all"])
def test_the_query_part_goes_to_the_tokens_before_the_name_and_the_route_part_to_the_others(policy, routes):
    asked = [("capital of Kor-mu", 0), ("capital of Kor-mu", 1), ("flag 1 2", 2)]
    turns = asking_turns(policy, 1, asked, [0.0, -0.5, -0.1])
    parts = [(0.8, 0.0), (0.8, -0.5), (0.2, -0.1)]
    turns = [replace(turn, reward=TurnReward(query + route, route=route)) for turn, (query, route) in zip(turns, parts, strict=True)]
    stop = replace(turns[0], turn=replace(turns[0].turn, routes=None), reward=TurnReward(0.4), route_rewards=())
    config = LearnerConfig(normalisation="none", routes=routes)
    turns = [*turns, stop]
    ((row,),) = dealt_rows(turns, turn_advantages(turns, config), config, 0)
    of_query = np.array([0.8, 0.8, 0.2, 0.4]) - 0.55
    of_route = np.array([0.0, -0.5, -0.1]) + 0.2 if routes == "sampled" else np.zeros(3)
    for i, response in enumerate(row.responses[:3]):
        start = turns[i].turn.routes.start
        np.testing.assert_allclose(response.advantages[:start], of_query[i], rtol=1e-6)
        np.testing.assert_allclose(response.advantages[start:], of_route[i], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(row.responses[3].advantages, of_query[3], rtol=1e-6)


def test_siblings_with_one_query_are_learned_from_by_their_names_alone():
    turns = [
        ScoredTurn("s", np.array([1], np.int32), None, TURN, TurnReward(0.7 + route, route=route), "e", None, "q")
        for route in (0.0, 0.0, -0.4)
    ]
    assert turn_advantages(turns, LearnerConfig()).kept.all()
    assert not turn_advantages(turns, LearnerConfig(routes="all")).kept.any()  # what is learned there is the names of all routes
