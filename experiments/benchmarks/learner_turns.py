"""Scored turns for the learner benchmarks: of the default world, and of given lengths."""

from __future__ import annotations

import random

import numpy as np

from experiments.benchmarks.pipeline import SlowKnowledgeBases
from experiments.worlds.atlas import Atlas, World
from rollout.config import RolloutConfig
from rollout.engines.transformers_engine import TransformersEngine
from rollout.policies import Policy
from rollout.records import ScoredTurn, State, Turn, TurnReward
from rollout.roll_out import roll_out


def default_turns(policy: Policy, questions: int, group_size: int, seed: int = 0) -> list[ScoredTurn]:
    """Turns that `policy` samples in a fictional world, `group_size` siblings each; rewards are random, so every group has variance."""
    atlas, rng = Atlas("train", seed, worlds=1), random.Random(seed)
    knowledge_bases, config = SlowKnowledgeBases(atlas, seconds=0.0), RolloutConfig(group_size=group_size)
    trajectories = roll_out(atlas.questions(questions), TransformersEngine(policy), knowledge_bases, config, seed)
    return [
        scored(group.state, turn, rng.random(), str(number))
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
            found.append(scored(state, turn, rng.random(), str(number)))
    return found


def scored(state: State, turn: Turn, reward: float, episode: str) -> ScoredTurn:
    return ScoredTurn(state.key, state.prompt_ids, state.image, turn, TurnReward(reward), episode, reward, state.question.id)
