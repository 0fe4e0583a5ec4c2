"""The whole objective, from scored turns to a gradient, with a policy that is a table: logits = table[hash of the prompt]."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from choices import CHOICES
from hypothesis import given, settings
from hypothesis import strategies as st
from local_rows import dealt_rows, denominators
from table_policy import logprobs_of

from learner.config import LearnerConfig
from learner.objective.advantages import turn_advantages
from learner.objective.batch_plan import plan, token_weights
from learner.objective.losses import RouteTokens, Tokens, loss_of, route_loss, sums_by
from learner.objective.sibling_packing import pack
from rewards.scored_summary import ScoredSummary
from rollout.records import RouteNames, ScoredTurn, Turn, TurnReward

PROMPTS, VOCABULARY = 5, 7
OFF_POLICY = 0.4
"""Standard deviation of the policy's log-probs around those of the sampler, so that ratios are clipped now and then."""


def turns_of(seed: int) -> list[ScoredTurn]:
    """Four episodes of one question, each with a few of five states; siblings in one of them."""
    random = np.random.default_rng(seed)
    found = []
    for episode in range(4):
        for state in random.choice(PROMPTS, random.integers(1, 4), replace=False):
            for _ in range(3 if episode == 0 else 1):
                ids = random.integers(0, VOCABULARY, random.integers(1, 6)).astype(np.int32)
                logprobs = np.log(random.dirichlet(np.ones(VOCABULARY), len(ids))[:, 0] * 0.5 + 0.1).astype(np.float32)
                kind = ("plan", "answer", "final")[state % 3]
                turn = Turn(kind, ids, logprobs, "stop", 0, "")
                prompt = np.full(3, state, np.int32)
                reward, earned = TurnReward(float(random.random())), ()
                if kind == "plan" and len(ids) > 1:  # a prefix of one or two tokens, one of two
                    start = int(random.integers(1, min(3, len(ids))))
                    names = (ids[start:], random.integers(0, VOCABULARY, random.integers(1, 4)).astype(np.int32))
                    turn = replace(turn, routes=RouteNames(start, ("Text", "Table"), names))
                    earned = (0.7, 0.7) if episode == 1 else (reward.total, 0.2)
                found.append(ScoredTurn(f"s{state}", prompt, None, turn, reward, f"q#{episode}", float(episode % 2), "q", earned))
    return found


def gradient(turns, config: LearnerConfig, ranks: int, tokens: int, seed: int) -> tuple[torch.Tensor, float, dict[str, float]]:
    """Of the first mini-batch: every rank's micro-batches one after the other, gradients added up, as the learner does it."""
    generator = torch.Generator().manual_seed(seed)
    table = (OFF_POLICY * torch.randn(PROMPTS, VOCABULARY, generator=generator)).requires_grad_()
    reference = torch.randn(PROMPTS, VOCABULARY, generator=generator)
    before = torch.randn(PROMPTS, VOCABULARY, generator=generator)
    config, advantages = replace(config, tokens_per_micro_batch=tokens), turn_advantages(turns, config)
    rows, denominator = (found(turns, advantages, config, 0)[0] for found in (dealt_rows, denominators))
    batches = [
        pack(batch, [np.zeros((3, len(row.prompt_ids)), np.int64) for row in batch], 0)
        for mine in plan(rows, ranks, tokens)
        for batch in mine
    ]
    counts = [len(batch.turns) for batch in batches]
    learners = [
        logprobs_of(before, batch)[0][:n] if config.sampler_correction != "none" else None for batch, n in zip(batches, counts, strict=True)
    ]
    means = torch.zeros(2, 4)
    for batch, learner, count in zip(batches, learners, counts, strict=True):
        old = torch.from_numpy(batch.old_logprobs) if learner is None else learner
        means += sums_by((logprobs_of(table, batch)[0][:count] - old).detach(), torch.from_numpy(batch.episodes), 4)
    total, metrics = 0.0, {}
    for batch, learner, count in zip(batches, learners, counts, strict=True):
        logprobs, entropy = logprobs_of(table, batch)
        loss, found = loss_of(
            Tokens(
                logprobs=logprobs[:count],
                entropy=entropy[:count],
                sampler_logprobs=torch.from_numpy(batch.old_logprobs),
                advantages=torch.from_numpy(batch.advantages),
                weights=torch.from_numpy(batch.weights),
                turn=torch.from_numpy(batch.turns),
                learner_logprobs=learner,
                reference_logprobs=logprobs_of(reference, batch)[0][:count] if config.kl_weight else None,
                sequence_log_ratio=(means[0] / means[1].clamp(min=1))[torch.from_numpy(batch.episodes)],
            ),
            config,
            denominator,
        )
        columns = map(torch.from_numpy, (batch.route_of, batch.route_turns, batch.route_rewards, batch.route_weights))
        of_routes, routed = route_loss(RouteTokens(logprobs[count:], *columns), denominator)
        loss, found = loss + of_routes, found | routed
        loss.backward()
        total += loss.item()
        for name, value in found.items():
            metrics[name] = max(metrics.get(name, 0.0), value.item()) if name.endswith("_max") else metrics.get(name, 0.0) + value.item()
    return table.grad, total, metrics


CONFIGS = st.builds(
    LearnerConfig,
    routes=st.sampled_from(CHOICES["routes"]),
    overlong=st.sampled_from(CHOICES["overlong"]),
    step_weight=st.just(1.0),
    episode_weight=st.sampled_from([0.0, 1.0]),
    normalisation=st.sampled_from(["std", "batch_std", "none"]),
    baseline=st.sampled_from(["mean", "leave_one_out"]),
    surrogate=st.sampled_from(["clip", "cispo"]),
    ratio=st.sampled_from(CHOICES["ratio"]),
    aggregation=st.sampled_from(CHOICES["aggregation"]),
    clip_high=st.sampled_from([0.2, 0.28]),
    kl_weight=st.sampled_from([0.0, 0.3]),
    kl_estimator=st.sampled_from(CHOICES["kl_estimator"]),
    entropy_weight=st.sampled_from([0.0, 0.2]),
    sampler_correction=st.sampled_from(CHOICES["sampler_correction"]),
)
DPPO = CONFIGS.map(lambda config: replace(config, surrogate="dppo", ratio="token", sampler_correction="none"))


@settings(deadline=None, max_examples=150)
@given(st.one_of(CONFIGS, DPPO), st.integers(0, 50), st.integers(1, 3), st.integers(1, 80), st.randoms())
def test_whatever_is_set_the_gradient_does_not_depend_on_micro_batches_packing_order_or_ranks(config, seed, ranks, tokens, random):
    turns = turns_of(seed)
    shuffled = list(range(len(turns)))
    random.shuffle(shuffled)
    expected, loss, metrics = gradient(turns, config, 1, 10_000, seed)
    found, same_loss, same_metrics = gradient([turns[i] for i in shuffled], config, ranks, tokens, seed)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert same_loss == pytest.approx(loss, abs=1e-5)
    assert same_metrics == pytest.approx(metrics, abs=1e-4)


@pytest.mark.parametrize("aggregation", CHOICES["aggregation"])
def test_what_is_named_counts_equally(aggregation):
    turns = turns_of(1)
    weights, shares = token_weights(ScoredSummary.of(turns), np.arange(len(turns)), aggregation, 10)
    lengths = [len(turn.turn.response_ids) for turn in turns]
    unit = {
        "turn_mean": list(range(len(turns))),
        "step_mean": [(turn.episode, turn.state_key) for turn in turns],
        "sequence_mean": [turn.episode for turn in turns],
    }.get(aggregation)
    if aggregation == "token_mean":
        assert set(weights) == {1.0}
        assert shares.sum() == sum(lengths)
    elif aggregation == "constant":
        np.testing.assert_allclose(weights, 0.1)
        assert shares.sum() == len(turns)
    else:
        counted = {u: sum(w * n for v, w, n in zip(unit, weights, lengths, strict=True) if v == u) for u in unit}
        np.testing.assert_allclose(list(counted.values()), 1.0)
        assert shares.sum() == pytest.approx(len(counted))


def tokens_of(turns: list[int], seed: int = 0, **more) -> Tokens:
    """Random tokens of turns of these lengths."""
    generator = torch.Generator().manual_seed(seed)
    n = sum(turns)
    sampler = -1 - torch.rand(n, generator=generator)
    values = {
        "logprobs": (sampler + OFF_POLICY * torch.randn(n, generator=generator)).requires_grad_(),
        "entropy": torch.rand(n, generator=generator),
        "sampler_logprobs": sampler,
        "advantages": torch.repeat_interleave(torch.randn(len(turns), generator=generator), torch.tensor(turns)),
        "weights": torch.ones(n),
        "turn": torch.repeat_interleave(torch.arange(len(turns)), torch.tensor(turns)),
    }
    return Tokens(**(values | more))


def test_the_ratio_of_a_turn_is_the_geometric_mean_of_its_tokens_and_clips_them_together():
    tokens = tokens_of([3, 5, 1, 7])
    loss, metrics = loss_of(tokens, LearnerConfig(ratio="turn"), 16.0)
    loss.backward()
    expected, by_hand = 0.0, torch.zeros(16)
    difference = (tokens.logprobs - tokens.sampler_logprobs).detach()
    for turn in range(4):
        mine = tokens.turn == turn
        ratio, advantage = difference[mine].mean().exp(), tokens.advantages[mine][0]
        expected += mine.sum() * torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
        moves = not ((ratio > 1.2 and advantage > 0) or (ratio < 0.8 and advantage < 0))
        by_hand[mine] = -ratio * advantage * moves
    assert -16 * loss.item() == pytest.approx(expected.item(), abs=1e-5)
    torch.testing.assert_close(16 * tokens.logprobs.grad, by_hand, atol=1e-5, rtol=1e-5)
    assert metrics["ratio_max"] < difference.exp().max()


def test_the_ratio_of_a_sequence_is_that_of_all_its_turns():
    tokens = tokens_of([4, 4])
    mean = (tokens.logprobs - tokens.sampler_logprobs).detach().mean().expand(8)
    by_sequence, _ = loss_of(replace(tokens, sequence_log_ratio=mean), LearnerConfig(ratio="sequence"), 8.0)
    by_turn, _ = loss_of(replace(tokens, turn=torch.zeros(8, dtype=torch.int64)), LearnerConfig(ratio="turn"), 8.0)
    assert by_sequence.item() == pytest.approx(by_turn.item(), abs=1e-6)


def test_cispo_bounds_the_weight_of_a_token_and_keeps_its_gradient():
    logprobs = torch.tensor([5.0, 1.0, 0.01]).log().requires_grad_()
    tokens = tokens_of([3], logprobs=logprobs, sampler_logprobs=torch.zeros(3), advantages=torch.tensor([2.0, 2.0, -1.0]))
    loss, _ = loss_of(tokens, LearnerConfig(surrogate="cispo", clip_low=0.9, clip_high=1.0), 1.0)
    loss.backward()
    torch.testing.assert_close(logprobs.grad, -torch.tensor([2.0 * 2.0, 2.0 * 1.0, -1.0 * 0.1]))


def test_the_correction_for_the_sampler_weighs_tokens_by_the_truncated_ratio_of_learner_to_sampler():
    tokens = tokens_of([6, 6])
    learner = tokens.sampler_logprobs + torch.linspace(-2, 2, 12)
    tokens = replace(tokens, learner_logprobs=learner)
    config = LearnerConfig(sampler_correction="truncate")
    loss, metrics = loss_of(tokens, config, 12.0)
    correction = (learner - tokens.sampler_logprobs).exp().clamp(max=2)
    weighed = replace(tokens, sampler_logprobs=learner, learner_logprobs=None, weights=tokens.weights * correction)
    expected, _ = loss_of(weighed, LearnerConfig(), 12.0)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)
    assert metrics["correction"].item() == pytest.approx(correction.sum().item())
    assert metrics["mismatch_max"].item() == pytest.approx(2.0)


def test_in_the_first_mini_batch_the_learner_itself_is_where_ratios_start():
    loss, metrics = loss_of(tokens_of([5, 5]), LearnerConfig(sampler_correction="truncate"), 10.0)
    loss.backward()
    assert metrics["ratio"] == 10
    assert metrics["clip_fraction"] == 0
    assert metrics["mismatch"] > 0


def test_the_entropy_bonus_moves_the_policy_towards_the_uniform_one():
    logits = torch.tensor([[2.0, 0.0, -1.0]]).requires_grad_()
    logprobs = torch.log_softmax(logits, -1)
    entropy = -(logprobs.exp() * logprobs).sum(-1)
    tokens = tokens_of([1], logprobs=logprobs[:, 0], entropy=entropy, sampler_logprobs=logprobs[:, 0].detach(), advantages=torch.zeros(1))
    loss, metrics = loss_of(tokens, LearnerConfig(entropy_weight=0.5), 1.0)
    loss.backward()
    assert loss.item() == pytest.approx(-0.5 * entropy.item())
    assert metrics["entropy"].item() == pytest.approx(entropy.item())
    assert logits.grad[0, 0] > 0 > logits.grad[0, 1]


def test_kl_estimators_agree_with_the_divergence_on_average_and_k1_and_k2_push_as_the_gradient_of_it():
    """All outcomes of a three-sided die, weighed by their probability: expectations are exact."""
    logits, reference = torch.tensor([0.5, -0.2, 0.0]).requires_grad_(), torch.log_softmax(torch.tensor([-0.3, 0.4, 0.1]), -1)
    logprobs = torch.log_softmax(logits, -1)
    divergence = (logprobs.exp() * (logprobs - reference)).sum()
    (true,) = torch.autograd.grad(divergence, logits, retain_graph=True)
    chances, gradients = logprobs.detach().exp(), {}
    for estimator in CHOICES["kl_estimator"]:
        config = LearnerConfig(kl_weight=1.0, kl_estimator=estimator)
        tokens = tokens_of(
            [1, 1, 1], logprobs=logprobs, sampler_logprobs=logprobs.detach(), advantages=torch.zeros(3), weights=chances,
            reference_logprobs=reference,
        )  # fmt: skip
        loss, _ = loss_of(tokens, config, 1.0)
        (gradients[estimator],) = torch.autograd.grad(loss, logits, retain_graph=True)
        if estimator != "k2":
            assert loss.item() == pytest.approx(divergence.item(), abs=1e-6)
    torch.testing.assert_close(gradients["k2"], true, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(gradients["k1"], torch.zeros(3), atol=1e-6, rtol=0)


def test_prompts_and_retrieved_text_have_no_place_among_the_tokens_of_the_loss():
    turns = turns_of(2)
    config = LearnerConfig()
    rows = dealt_rows(turns, turn_advantages(turns, config), config, 0)[0]
    batch = pack(rows, [np.zeros((3, len(row.prompt_ids)), np.int64) for row in rows], 0)
    sampled = list(itertools.chain.from_iterable(response.ids for row in rows for response in row.responses))
    assert batch.targets.tolist() == sampled
    assert all(len(values) == len(sampled) for values in (batch.sources, batch.advantages, batch.weights, batch.old_logprobs))
