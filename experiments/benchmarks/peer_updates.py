"""Updates and whole iterations of `bench peers`: our learner, and a bare loop of torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from experiments.benchmarks.fresh_process import free_port
from experiments.benchmarks.learner import update_of
from experiments.benchmarks.learner_turns import rows_of, scored
from experiments.benchmarks.peer_process import Once, Result, Work, reward_of
from experiments.benchmarks.peer_rollouts import endless, requests_of
from learner.config import LearnerConfig
from learner.objective.batch_plan import plan
from learner.ranks.learner_rank import LearnerRank, MiniBatch
from rollout.engines.base import generate
from rollout.engines.transformers_engine import TransformersEngine
from rollout.policies import Policy
from rollout.records import Question, ScoredTurn, State, Turn

QUESTION = Question("", "", ("",))


def our_learner(work: Work) -> tuple[LearnerRank, Callable[[list[ScoredTurn]], Result]]:
    """A learner's rank, and one update of it, from scored turns on."""
    config = LearnerConfig(lr=work.lr, normalisation="none", tokens_per_micro_batch=work.tokens_per_micro_batch, threads=work.threads)
    rank = LearnerRank(0, 1, config, work.policy)
    rank.connect("127.0.0.1", free_port())
    rank.build(config)

    def learn(turns: list[ScoredTurn]) -> Result:
        rows = rows_of(turns, config)
        batches = plan(rows, 1, config.tokens_per_micro_batch)[0]
        (found,) = rank.update([MiniBatch(batches, sum(row.weight for row in rows), config.lr)])
        return {"loss": found["loss"], "norm": found["grad_norm"]}

    return rank, learn


def scored_turns(work: Work, groups: Sequence[Sequence[Turn]]) -> list[ScoredTurn]:
    states = [State("plan", np.array(ids, np.int32), None, QUESTION) for ids in work.ids]
    columns = enumerate(zip(states, groups, strict=True))
    return [scored(state, turn, reward_of(turn.text), str(i)) for i, (state, turns) in columns for turn in turns]


def given_turns(work: Work, policy: Policy) -> list[ScoredTurn]:
    def turn(ids: list[int], logprobs: list[float]) -> Turn:
        return Turn("plan", np.array(ids, np.int32), np.array(logprobs, np.float32), "length", 0, policy.decode(ids))

    return scored_turns(work, [list(map(turn, *group)) for group in zip(work.responses, work.logprobs, strict=True)])


def our_update(work: Work) -> Once:
    rank, learn = our_learner(work)
    turns = given_turns(work, rank.policy)
    return lambda: learn(turns)


def our_iteration(work: Work) -> Once:
    """Rollout, rewards, update, and the weights copied to the engine: in one process, as TRL's."""
    policy, (rank, learn) = endless(work), our_learner(work)
    engine = TransformersEngine(policy)

    def once() -> Result:
        version = engine.policy_version + 1
        turns = [[response.turn("plan", policy) for response in group] for group in generate(engine, requests_of(work, version))]
        found = learn(scored_turns(work, turns))
        engine.update_weights(version, dict(rank.gathered()))
        return found

    return once


def bare_update(work: Work) -> Once:
    """Padded rows through the library's forward pass, the same loss, AdamW."""
    config, policy = LearnerConfig(normalisation="none"), endless(work)
    rows, parameters = rows_of(given_turns(work, policy), config), list(policy.model.parameters())
    update = update_of("padded", policy, rows, work.tokens_per_micro_batch)
    optimizer = torch.optim.AdamW(parameters, lr=work.lr, betas=config.betas, weight_decay=config.weight_decay)

    def once() -> Result:
        update()
        norm = torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)
        optimizer.step()
        return {"norm": float(norm)}

    return once
