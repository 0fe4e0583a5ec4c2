"""A small decision problem: what Step-GRPO is for.

An episode has to look three things up. Each is of one of six kinds, and each kind is held by one of three knowledge bases. The right one brings the
answer mostly, a wrong one now and then, and the final answer is right when all three came back: a noisy outcome of three decisions. The
policy is a table of logits, learned from with the learner's own advantages, mini-batches and loss.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from local_rows import dealt_rows
from table_policy import logprobs_of

from learner.config import LearnerConfig
from learner.objective.advantages import turn_advantages
from learner.objective.losses import Tokens, loss_of
from learner.objective.sibling_packing import pack
from rollout.records import ScoredTurn, Turn, TurnReward

KINDS, KBS, STEPS = 6, 3, 3
FOUND_IN_THE_RIGHT_KB, FOUND_ELSEWHERE = 0.7, 0.3
GROUP, QUESTIONS = 8, 4
ENOUGH = 0.95
LIMIT = 30_000
"""Sampled turns after which a method has failed."""


class Problem:
    """Episodes of a table policy, in `branch` mode (siblings at every step) or in `chain` mode (whole episodes side by side)."""

    def __init__(self, seed: int):
        self.random = np.random.default_rng(seed)
        self.best = self.random.integers(0, KBS, KINDS)
        self.asked = 0

    def turn(self, table: np.ndarray, kind: int) -> Turn:
        logprobs = table[kind] - np.log(np.exp(table[kind]).sum())
        kb = self.random.choice(KBS, p=np.exp(logprobs) / np.exp(logprobs).sum())
        return Turn("plan", np.array([kb], np.int32), logprobs[[kb]].astype(np.float32), "stop", 0, "")

    def finds(self, kind: int, turn: Turn) -> bool:
        right = turn.response_ids[0] == self.best[kind]
        return self.random.random() < (FOUND_IN_THE_RIGHT_KB if right else FOUND_ELSEWHERE)

    def scored(self, kinds: np.ndarray, step: int, turn: Turn, episode: str, outcome: float, question: str) -> ScoredTurn:
        reward = TurnReward(float(turn.response_ids[0] == self.best[kinds[step]]))
        return ScoredTurn(f"{question}/{step}", np.array([kinds[step]], np.int32), None, turn, reward, episode, outcome, question)

    def branch(self, table: np.ndarray) -> list[ScoredTurn]:
        self.asked += 1
        question, kinds = f"q{self.asked}", self.random.integers(0, KINDS, STEPS)
        siblings = [[self.turn(table, kind) for _ in range(GROUP)] for kind in kinds]
        outcome = float(all(self.finds(kind, group[0]) for kind, group in zip(kinds, siblings, strict=True)))
        return [self.scored(kinds, i, turn, question, outcome, question) for i, group in enumerate(siblings) for turn in group]

    def chain(self, table: np.ndarray) -> list[ScoredTurn]:
        self.asked += 1
        question, kinds = f"q{self.asked}", self.random.integers(0, KINDS, STEPS)
        found = []
        for copy in range(GROUP):
            turns = [self.turn(table, kind) for kind in kinds]
            outcome = float(all(self.finds(kind, turn) for kind, turn in zip(kinds, turns, strict=True)))
            found += [self.scored(kinds, i, turn, f"{question}#{copy}", outcome, question) for i, turn in enumerate(turns)]
        return found

    def routing(self, table: torch.Tensor) -> float:
        """Probability of the right knowledge base, over all kinds."""
        return float(torch.softmax(table, -1)[torch.arange(KINDS), torch.from_numpy(self.best)].mean())


def turns_until_it_routes(mode: str, config: LearnerConfig, seed: int) -> int:
    """Sampled turns until the policy routes right in 95 % of all cases."""
    problem, sampled = Problem(seed), 0
    table = torch.zeros(KINDS, KBS, requires_grad=True)
    optimizer = torch.optim.Adam([table], lr=config.lr)
    while problem.routing(table.detach()) < ENOUGH and sampled < LIMIT:
        turns = [turn for _ in range(QUESTIONS) for turn in getattr(problem, mode)(table.detach().numpy().astype(np.float64))]
        sampled += len(turns)
        for rows in dealt_rows(turns, turn_advantages(turns, config), config, 0):
            batch = pack(rows, [np.zeros((3, 1), np.int64) for _ in rows], 0)
            logprobs, entropy = logprobs_of(table, batch)
            arrays = (batch.old_logprobs, batch.advantages, batch.weights, batch.turns)
            loss, _ = loss_of(Tokens(logprobs, entropy, *map(torch.from_numpy, arrays)), config, sum(row.weight for row in rows))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return sampled


STEP_GRPO = {"step_weight": 1.0, "episode_weight": 0.0}
OUTCOME_GRPO = {"step_weight": 0.0, "episode_weight": 1.0}


@pytest.mark.parametrize("lr", [0.05, 0.1])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_step_grpo_routes_right_after_at_most_half_of_the_samples_that_outcome_grpo_needs(seed, lr):
    """Both count every sampled turn, siblings included, and learn at the same rate, from the same number of turns an update."""
    by_step = turns_until_it_routes("branch", LearnerConfig(lr=lr, **STEP_GRPO), seed)
    by_outcome = turns_until_it_routes("chain", LearnerConfig(lr=lr, **OUTCOME_GRPO), seed)
    assert by_step < LIMIT
    assert by_outcome < LIMIT
    assert by_step <= by_outcome / 2


@pytest.mark.parametrize(
    ("mode", "settings"),
    [
        ("branch", {"baseline": "leave_one_out", "normalisation": "none"}),
        ("branch", {"baseline": "shrunk", "normalisation": "batch_std"}),
        ("branch", {"normalisation": "components"}),
        ("branch", {"surrogate": "cispo", "ratio": "turn", "aggregation": "step_mean"}),
    ],
    ids=["RLOO", "shrunk", "GDPO", "CISPO"],
)
def test_other_ways_to_compare_and_to_weigh_learn_it_too(mode, settings):
    assert turns_until_it_routes(mode, LearnerConfig(lr=0.1, **settings), 0) < 5_000
