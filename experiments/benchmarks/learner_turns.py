"""Scored turns for the benchmarks, of the default world and of given lengths; their rows, and the tokens of rows."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import numpy as np
import torch

from experiments.benchmarks.pipeline import SlowKnowledgeBases
from experiments.worlds.atlas import Atlas, World
from learner.config import LearnerConfig
from learner.objective.advantages import turn_advantages
from learner.objective.batch_plan import deal
from learner.objective.losses import Tokens
from learner.objective.sibling_packing import Response, Row, row_of
from rewards.scored_summary import ScoredSummary
from rollout.config import RolloutConfig
from rollout.engines.base import Engine
from rollout.policies import Policy
from rollout.records import ScoredTurn, State, Turn, TurnReward
from rollout.roll_out import roll_out


def default_turns(engine: Engine, questions: int, group_size: int, seed: int = 0) -> list[ScoredTurn]:
    """Turns that `engine` samples in a fictional world, `group_size` siblings each; rewards are random, so every group has variance."""
    atlas, rng = Atlas("train", seed, worlds=1), random.Random(seed)
    knowledge_bases, config = SlowKnowledgeBases(atlas, seconds=0.0), RolloutConfig(group_size=group_size)
    trajectories = roll_out(atlas.questions(questions), engine, knowledge_bases, config, seed)
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


def rows_of(turns: Sequence[ScoredTurn], config: LearnerConfig) -> list[Row]:
    """As one mini-batch."""
    scored = ScoredSummary.of(turns)
    advantages = turn_advantages(scored, config)
    (planned,), credit = deal(scored, advantages, config, 0)
    columns = advantages.advantages, credit.weights, scored.episode, credit.names, credit.routes
    return [row_of([turns[i] for i in row.turns], *(column[row.turns] for column in columns)) for row in planned]


def tokens_of(rows: Sequence[Row], logprobs: torch.Tensor, entropy: torch.Tensor) -> Tokens:
    responses = [response for row in rows for response in row.responses]
    lengths = torch.tensor([len(response.ids) for response in responses])

    def spread(value: Callable[[Response], float]) -> torch.Tensor:
        return torch.tensor([value(response) for response in responses]).repeat_interleave(lengths).to(logprobs.device)

    return Tokens(
        logprobs=logprobs,
        entropy=entropy,
        sampler_logprobs=torch.cat([torch.from_numpy(response.logprobs) for response in responses]).to(logprobs.device),
        advantages=spread(lambda response: response.advantage),
        weights=spread(lambda response: response.weight),
        turn=torch.arange(len(responses)).repeat_interleave(lengths).to(logprobs.device),
    )
