"""Learning from what was sampled at another temperature, or from some of the tokens: the learner's distribution is the sampler's."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from local_rows import rows_of
from torch import nn

from learner.config import LearnerConfig
from learner.objective.losses import Tokens, loss_of
from learner.objective.sibling_packing import pack
from learner.objective.token_logprobs import Head, SampledFrom, Scorer, inputs_of, packed
from rollout.config import RolloutConfig
from rollout.engines.base import Request, Sampling, generate
from rollout.engines.sampling import sample_tokens
from rollout.engines.transformers_engine import TransformersEngine
from rollout.policies import Policy, load_policy
from rollout.record_files import read_rollouts, write_rollouts
from rollout.records import AllowedTokens, Question, ScoredTurn, State, Turn, TurnReward

WORDS, STATES, DRAWS = 9, 3, 2000
BANNED = (0, 5)


def drawn(logits: torch.Tensor, state: int, sampling: Sampling, count: int = DRAWS) -> list[ScoredTurn]:
    """One-token turns at evenly spread draws: each token comes as often as its probability says."""
    draws = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    tokens, logprobs, support = sample_tokens(logits.expand(count, -1), draws, torch.tensor(BANNED), sampling)
    turns = []
    for i in range(count):
        kept = None if support is None else AllowedTokens(ids := support[i].nonzero()[:, 0].int().numpy(), np.array([len(ids)], np.int32))
        turn = Turn("plan", tokens[[i]].int().numpy(), logprobs[[i]].numpy(), "stop", 0, "", sampling.temperature, kept)
        turns.append(ScoredTurn(f"s{state}", np.array([state], np.int32), None, turn, TurnReward(0.0), "e", 0.0, "q"))
    return turns


TOP_3 = Sampling(0.7, 1.0, 3)


@pytest.mark.parametrize(
    ("sampling", "settings"),
    [(sampling, {}) for sampling in (TOP_3, Sampling(0.7), Sampling(1.4, 0.8), Sampling(0.5, 0.9, 4), Sampling(1.0, 1.0, 3))]
    + [(TOP_3, {"sampler_correction": "truncate"}), (TOP_3, {"surrogate": "cispo"}), (TOP_3, {"ratio": "turn"})],
    ids=str,
)
def test_the_gradient_of_a_table_policy_is_the_exact_one_of_its_expected_reward(sampling, settings):
    generator = torch.Generator().manual_seed(1)
    table = torch.randn(STATES, WORDS, generator=generator).requires_grad_()
    rewards = torch.randn(STATES, WORDS, generator=generator)

    expected, open_to = torch.zeros(()), [word for word in range(WORDS) if word not in BANNED]
    for state in range(STATES):
        probabilities = torch.softmax(table[state, open_to] / sampling.temperature, -1)
        ranked = probabilities.detach().sort(descending=True)
        kept = ranked.indices[: sampling.top_k or WORDS]
        share = ranked.values[: sampling.top_k or WORDS] / ranked.values[: sampling.top_k or WORDS].sum()
        kept = kept[share.cumsum(0) - share < sampling.top_p]
        restricted = probabilities[kept] / probabilities[kept].sum()
        expected = expected + (restricted * rewards[state, open_to][kept]).sum() / STATES
    (exact,) = torch.autograd.grad(expected, table)

    turns = [turn for state in range(STATES) for turn in drawn(table.detach()[state], state, sampling)]
    advantages = [float(rewards[int(turn.prompt_ids[0]), int(turn.turn.response_ids[0])]) for turn in turns]
    rows = rows_of(turns, advantages, [1.0] * len(turns), 10**9)
    batch = pack(rows, [np.zeros((3, 1), np.int64) for _ in rows], 0)
    lm_head = nn.Linear(STATES, WORDS, bias=False)
    lm_head.weight = nn.Parameter(table.detach().T.clone())
    state = torch.from_numpy(batch.input_ids[np.flatnonzero(np.diff(batch.rows, prepend=-1))][batch.rows[batch.sources]])
    hidden = torch.nn.functional.one_hot(state, STATES).float()
    logprobs, entropy = Head(lm_head, BANNED, False)(hidden, torch.from_numpy(batch.targets), SampledFrom.of(batch, hidden.device))
    arrays = (batch.old_logprobs, batch.advantages, batch.weights, batch.turns)
    loss, metrics = loss_of(Tokens(logprobs, entropy, *map(torch.from_numpy, arrays)), LearnerConfig(**settings), float(len(turns)))
    loss.backward()
    torch.testing.assert_close(-lm_head.weight.grad.T, exact, atol=2e-3, rtol=0)
    assert metrics["mismatch_max"] < 1e-5
    assert metrics["ratio"] / len(turns) == pytest.approx(1, abs=1e-5)


def sampled(policy: Policy, sampling: Sampling) -> list[ScoredTurn]:
    engine, turns = TransformersEngine(policy), []
    for seed, text in enumerate(["Which capital ?", "The flag shows red and blue ."]):
        prompt = np.array(policy.tokenizer(text)["input_ids"], np.int32)
        state = State("plan", prompt, None, Question(f"q{seed}", text, ("a",)))
        for response in generate(engine, [Request(prompt, None, 3, seed, sampling)])[0]:
            turn = response.turn("plan", policy)
            turns.append(ScoredTurn(state.key, prompt, None, turn, TurnReward(0.0), "e", 0.0, state.question.id))
    return turns


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.7, 1.0, 3, 9), Sampling(1.5), Sampling(0.8, 0.7), Sampling(0.0)], ids=str)
def test_what_the_engine_says_of_its_tokens_is_what_the_learner_computes_even_from_a_file(policy_path, tmp_path, sampling):
    policy = load_policy(policy_path)
    turns = sampled(policy, replace(sampling, max_new_tokens=9))
    write_rollouts(tmp_path / "rollouts", [], turns)
    for seen in (turns, read_rollouts(tmp_path / "rollouts")[1]):
        batch = packed(rows_of(seen, [0.0] * len(seen), [1.0] * len(seen), 10**6), policy)
        with torch.no_grad():
            logprobs, entropy = Scorer(policy)(**inputs_of(batch, policy, policy.device))
        np.testing.assert_allclose(logprobs.numpy(), batch.old_logprobs, atol=1e-4)
        assert entropy.isfinite().all()
        if sampling.temperature and sampling.top_k:
            assert (batch.support_sizes == 3).all()
            assert (entropy < np.log(3) + 1e-5).all()


@settings(max_examples=25)
@given(st.lists(st.sampled_from([Sampling(), Sampling(0.7, 1.0, 3), Sampling(1.4)]), min_size=1, max_size=6), st.integers(0, 99))
def test_turns_of_different_samplings_share_a_micro_batch(samplings, seed):
    table = torch.randn(WORDS, generator=torch.Generator().manual_seed(seed))
    turns = [drawn(table, 0, sampling, 10)[seed % 10] for sampling in samplings]
    rows = rows_of(turns, [0.0] * len(turns), [1.0] * len(turns), 99)
    batch = pack(rows, [np.zeros((3, 1), np.int64) for _ in rows], 0)
    lm_head = nn.Linear(1, WORDS, bias=False)
    lm_head.weight = nn.Parameter(table[:, None])
    hidden = torch.ones(len(turns), 1)
    logprobs, _ = Head(lm_head, BANNED, False)(hidden, torch.from_numpy(batch.targets), SampledFrom.of(batch, hidden.device))
    np.testing.assert_allclose(logprobs.detach().numpy(), batch.old_logprobs, atol=1e-5)


def test_a_rollout_at_default_settings_records_nothing_more(policy):
    assert {(turn.turn.temperature, turn.turn.allowed) for turn in sampled(policy, Sampling(max_new_tokens=4))} == {(1.0, None)}
    assert RolloutConfig().temperature == 1
