"""`chain` mode with a stop that is learned: whether the comparisons leave the policy gradient as it is, by exact expectation over all batches.

A plan turn asks or stops; what is read decides the next state, so later states are shared by some episodes, by one, or by none.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest
import torch

from learner.config import LearnerConfig
from learner.objective.advantages import group_advantages, turn_advantages
from rollout.records import ScoredTurn, Turn, TurnReward

STOP, ASK = 0, 1
READ = (0.6, 0.3, 0.1)
"""Probability of what a search brings; after reading i, the state is 1 + i."""
STATES = 1 + len(READ)
EPISODES: list[tuple[float, tuple[tuple[int, int], ...]]] = [
    (1.0, ((0, STOP),)),
    *((first, ((0, ASK), (1 + i, STOP))) for i, first in enumerate(READ)),
    *((first * second, ((0, ASK), (1 + i, ASK))) for i, first in enumerate(READ) for second in READ),
]
"""(probability of what was read, (state, action) of each plan turn) of everything that can happen."""
SHARED = 3
"""Episodes of a question."""


def probabilities(table: torch.Tensor) -> torch.Tensor:
    """(episodes,), of the policy with these logits (states, actions)."""
    logprobs = torch.log_softmax(table, -1)
    return torch.stack([chance * torch.stack([logprobs[turn] for turn in turns]).sum().exp() for chance, turns in EPISODES])


def score_function(table: torch.Tensor) -> np.ndarray:
    """(states, actions, states, actions): gradient of the log-prob of an action in a state."""
    found = np.zeros((STATES, 2, STATES, 2))
    for state, action in itertools.product(range(STATES), range(2)):
        found[state, action, state] = np.eye(2)[action] - torch.softmax(table[state], -1).numpy()
    return found


def batches(table: torch.Tensor):
    """(probability, numbers of the episodes) of every batch of one question."""
    p = probabilities(table).tolist()
    for numbers in itertools.combinations_with_replacement(range(len(EPISODES)), SHARED):
        orders = math.factorial(SHARED) / math.prod(math.factorial(times) for times in Counter(numbers).values())
        yield orders * math.prod(p[number] for number in numbers), numbers


def turns_of(numbers, rewards) -> list[ScoredTurn]:
    """`rewards`: (episodes, turns at most); the outcome of an episode is the reward of its last turn."""
    found = []
    for copy, number in enumerate(numbers):
        decisions = EPISODES[number][1]
        for place, (state, action) in enumerate(decisions):
            turn = Turn("plan", np.array([action], np.int32), np.zeros(1, np.float32), "stop", 0, "")
            prompt, outcome = np.array([state], np.int32), rewards[number, len(decisions) - 1]
            found.append(ScoredTurn(f"s{state}", prompt, None, turn, TurnReward(rewards[number, place]), f"q#{copy}", outcome, "q"))
    return found


def others() -> list[ScoredTurn]:
    """Two further questions in the batch."""
    turn = Turn("plan", np.array([STOP], np.int32), np.zeros(1, np.float32), "stop", 0, "")
    earned = {"a": (0.2, 0.9), "b": (0.1, 0.4, 0.3)}
    return [
        ScoredTurn(f"{name}0", np.zeros(1, np.int32), None, turn, TurnReward(reward), f"{name}#{i}", reward, name)
        for name, rewards in earned.items()
        for i, reward in enumerate(rewards)
    ]


def expected(table, rewards, advantages_of) -> np.ndarray:
    """(states, actions): mean over all batches of sum(advantage * gradient of the log-prob)."""
    gradients, total = score_function(table), np.zeros((STATES, 2))
    for probability, numbers in batches(table):
        turns = turns_of(numbers, rewards)
        for turn, advantage in zip(turns, advantages_of(turns), strict=False):
            total += probability * advantage * gradients[turn.prompt_ids[0], turn.turn.response_ids[0]]
    return total


def of(**settings):
    config = LearnerConfig(normalisation="none", **settings)

    def advantages_of(turns) -> np.ndarray:
        found = turn_advantages([*turns, *others()], config)
        return np.where(found.kept, found.advantages, 0.0)

    return advantages_of


def outcomes(random) -> np.ndarray:
    return np.repeat(random.random((len(EPISODES), 1)), 2, axis=1)


def apart(found: np.ndarray, true: np.ndarray) -> float:
    """Share of `found` that is no multiple of `true`."""
    scale = (found * true).sum() / (true**2).sum()
    return float(np.linalg.norm(found - scale * true) / np.linalg.norm(found))


BY_STATE, BY_EPISODE = {"step_weight": 1.0, "episode_weight": 0.0}, {"step_weight": 0.0, "episode_weight": 1.0}


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    ("settings", "scale"),
    [
        (BY_EPISODE | {"baseline": "mean"}, SHARED - 1),
        (BY_EPISODE | {"baseline": "leave_one_out"}, SHARED),
        (BY_STATE | {"baseline": "leave_one_out"}, SHARED),
        (BY_STATE | {"baseline": "shrunk"}, SHARED),
        ({"step_weight": 1.0, "episode_weight": 1.0, "baseline": "leave_one_out"}, 2 * SHARED),
    ],
    ids=["episodes, mean", "episodes, leave one out", "states, leave one out", "states, shrunk", "states and episodes"],
)
def test_the_expected_gradient_is_the_policy_gradient_times_the_number_of_episodes(settings, scale, seed):
    random = np.random.default_rng(seed)
    table, rewards = torch.from_numpy(random.normal(size=(STATES, 2))).requires_grad_(), outcomes(random)
    (probabilities(table) * torch.from_numpy(rewards[:, 0])).sum().backward()
    found = expected(table.detach(), rewards, of(**settings))
    np.testing.assert_allclose(found, scale * table.grad.numpy(), atol=1e-5)
    assert np.abs(table.grad.numpy()).min(axis=1).max() > 1e-3


@pytest.mark.parametrize("baseline", ["leave_one_out", "shrunk"])
def test_where_each_turn_has_a_reward_of_its_own_the_gradient_is_that_without_a_baseline(baseline):
    random = np.random.default_rng(2)
    table, rewards = torch.from_numpy(random.normal(size=(STATES, 2))), random.random((len(EPISODES), 2))
    plain = expected(table, rewards, lambda turns: [turn.reward.total for turn in turns])
    np.testing.assert_allclose(expected(table, rewards, of(**BY_STATE, baseline=baseline)), plain, atol=1e-5)


def per_turn_index(turns) -> np.ndarray:
    places = [sum(earlier.episode == turn.episode for earlier in turns[:i]) for i, turn in enumerate(turns)]
    return group_advantages(np.array([turn.reward.total for turn in turns]), np.array(places), "none").advantages


def alone_is_dropped(turns) -> np.ndarray:
    return group_advantages(
        np.array([turn.reward.total for turn in turns]), [turn.state_key for turn in turns], "none", "leave_one_out"
    ).advantages


@pytest.mark.parametrize(
    "advantages_of",
    [per_turn_index, alone_is_dropped, of(**BY_STATE, baseline="mean")],
    ids=["a baseline per turn index", "states, lone turns dropped", "states, mean"],
)
def test_comparisons_whose_share_of_a_gradient_depends_on_who_else_came_there_point_elsewhere(advantages_of):
    random = np.random.default_rng(0)
    table, rewards = torch.from_numpy(random.normal(size=(STATES, 2))).requires_grad_(), outcomes(random)
    (probabilities(table) * torch.from_numpy(rewards[:, 0])).sum().backward()
    assert apart(expected(table.detach(), rewards, advantages_of), table.grad.numpy()) > 0.05
