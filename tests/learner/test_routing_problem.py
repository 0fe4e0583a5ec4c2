"""A small decision problem: what Step-GRPO is for.

An episode has to look three things up. Each is of one of six kinds, and each kind is held by one of three knowledge bases. The right one brings the
answer mostly, a wrong one now and then, and the final answer is right when all three came back: a noisy outcome of three decisions. The
policy is a table of logits, learned from with the learner's own advantages, mini-batches and loss.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import islice

import numpy as np
import pytest
import torch
from local_rows import dealt_rows
from table_policy import logprobs_of

from learner.collapse import CollapseConfig, kb_entropies, signs
from learner.config import LearnerConfig
from learner.objective.advantages import turn_advantages
from learner.objective.losses import Tokens, loss_of
from learner.objective.sibling_packing import pack
from rewards.scored_summary import Route
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


def iterations(problem: Problem, mode: str, config: LearnerConfig, blind: bool = False) -> Iterator[tuple[list[ScoredTurn], torch.Tensor]]:
    """The turns of each iteration, and the table that was learned from them. `blind`: all kinds share one row: it cannot tell them apart."""
    logits = torch.zeros(1 if blind else KINDS, KBS, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=config.lr)
    while True:
        table = logits.detach().expand(KINDS, KBS).numpy().astype(np.float64)
        turns = [turn for _ in range(QUESTIONS) for turn in getattr(problem, mode)(table)]
        for rows in dealt_rows(turns, turn_advantages(turns, config), config, 0):
            batch = pack(rows, [np.zeros((3, 1), np.int64) for _ in rows], 0)
            logprobs, entropy = logprobs_of(logits.expand(KINDS, KBS), batch)
            arrays = (batch.old_logprobs, batch.advantages, batch.weights, batch.turns)
            loss, _ = loss_of(Tokens(logprobs, entropy, *map(torch.from_numpy, arrays)), config, sum(row.weight for row in rows))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        yield turns, logits.detach().expand(KINDS, KBS)


def turns_until_it_routes(mode: str, config: LearnerConfig, seed: int) -> int:
    """Sampled turns until the policy routes right in 95 % of all cases."""
    problem, sampled = Problem(seed), 0
    for turns, table in iterations(problem, mode, config):
        sampled += len(turns)
        if problem.routing(table) >= ENOUGH or sampled >= LIMIT:
            return sampled
    raise AssertionError("training has no end")


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


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("blind", [False, True], ids=["tells kinds apart", "blind"])
def test_routing_that_collapses_while_the_reward_rises_is_seen_and_routing_that_is_learned_is_no_sign(blind, seed):
    """A policy that cannot tell the kinds apart earns most with the knowledge base that most of them need."""
    problem, rows, rewards = Problem(seed), [], []
    problem.best = np.array([0, 0, 0, 1, 1, 2])
    for turns, _ in islice(iterations(problem, "branch", LearnerConfig(lr=0.1, **STEP_GRPO), blind), 60):
        routes = Counter((int(problem.best[turn.prompt_ids[0]]), int(turn.turn.response_ids[0])) for turn in turns)
        rows.append(kb_entropies({Route((f"kb{right}",), "", f"kb{kb}"): number for (right, kb), number in routes.items()}))
        rewards.append(np.mean([turn.reward.total for turn in turns]))
    found = [signs(rows[:n], CollapseConfig()) for n in range(1, len(rows) + 1)]
    assert np.mean(rewards[-10:]) > np.mean(rewards[:10]) + 0.05
    assert bool(found[-1]) is blind
    assert blind or not any(found)
    assert not blind or found[-1][0].name == "kb_entropy_ratio"
