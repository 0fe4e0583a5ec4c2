"""Scored turns to measure a learner with: those of the default world, and some of given lengths."""

from __future__ import annotations

import random
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from experiments.atlas import FAMILIES, KNOWLEDGE_BASES, World
from experiments.teacher_search import WordOverlap
from retrieval_actors.records import Passage, Query
from rollout.config import RolloutConfig
from rollout.engines.transformers_engine import TransformersEngine
from rollout.episode_pool import roll_out
from rollout.policy import Policy
from rollout.records import ScoredTurn, State, Trajectory, Turn, TurnReward


class OneWorld:
    """Retrieval over one world in this process, by shared words: passages as long as those of a run."""

    def __init__(self, world: World):
        self._found = WordOverlap(world)
        self.catalog = [
            SimpleNamespace(name=kb, retriever_name=name, description=about, modality="text+image" if kb == "text_image" else "text")
            for kb, (name, about) in KNOWLEDGE_BASES.items()
        ]
        self._nothing: Any = SimpleNamespace(image=None, gold_steps=None)

    def search_routed(self, asked: Sequence[tuple[str, Query]], k: int) -> list[list[Passage]]:
        return [self._found.search(kb, query.text, self._nothing, k) for kb, query in asked]


def default_turns(policy: Policy, questions: int, group_size: int, seed: int = 0) -> list[ScoredTurn]:
    """What `policy` says to questions of a fictional world, `group_size` siblings at each turn; rewards are drawn by lot, so that every group
    teaches."""
    world, rng, pixels = World("train", seed), random.Random(seed), np.random.default_rng(seed)
    asked = [world.question(FAMILIES[i % len(FAMILIES)], rng, pixels) for i in range(questions)]
    trajectories = roll_out(asked, TransformersEngine(policy), OneWorld(world), RolloutConfig(group_size=group_size), seed)
    return by_lot(trajectories, rng)


def by_lot(trajectories: Sequence[Trajectory], rng: random.Random) -> list[ScoredTurn]:
    return [
        _scored(group.state, turn, rng.random(), str(number))
        for number, trajectory in enumerate(trajectories)
        for group in trajectory.groups
        for turn in group.turns
    ]


def turns_of_lengths(policy: Policy, states: int, siblings: int, prompt: int, response: int, seed: int = 0) -> list[ScoredTurn]:
    """Random tokens, without pictures: `siblings` responses of `response` tokens to each of `states` prompts of `prompt` tokens."""
    draw, rng = np.random.default_rng(seed), random.Random(seed)
    allowed = np.setdiff1d(np.arange(len(policy.tokenizer)), policy.banned_token_ids)
    question = World("train", seed).question("text_one_hop", rng, draw)

    def some(tokens: int) -> np.ndarray:
        return draw.choice(allowed, tokens).astype(np.int32)

    found = []
    for number in range(states):
        state = State("plan", some(prompt), None, question)
        for _ in range(siblings):
            ids = some(response)
            turn = Turn("plan", ids, np.full(response, -np.log(len(allowed)), np.float32), "length", 0, "")
            found.append(_scored(state, turn, rng.random(), str(number)))
    return found


def _scored(state: State, turn: Turn, reward: float, episode: str) -> ScoredTurn:
    return ScoredTurn(state.key, state.prompt_ids, state.image, turn, TurnReward(reward), episode, reward, state.question.id)
