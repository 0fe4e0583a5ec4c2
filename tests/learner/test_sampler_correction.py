"""What corrects for a sampler with other probabilities than the learner's, by exact expectation over a small vocabulary."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from learner.config import LearnerConfig
from learner.objective.losses import Tokens, loss_of, outside_trust_region, sampler_weights

WORDS = 6
EXACT = {"rtol": 1e-4, "atol": 1e-6}


def distributions(seed: int, apart: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits of the learner, log-probs of the sampler, advantages: (words,) each."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(WORDS, generator=generator)
    sampler = torch.log_softmax(logits + apart * torch.randn(WORDS, generator=generator), -1)
    return logits, sampler, torch.randn(WORDS, generator=generator)


def expected_gradient(logits: torch.Tensor, sampler: torch.Tensor, advantages: torch.Tensor, config: LearnerConfig):
    """Of the loss by the logits: every word, weighed by how often the sampler draws it."""
    logits = logits.clone().requires_grad_()
    turn, entropy = torch.zeros(WORDS, dtype=torch.int64), torch.zeros(WORDS)
    tokens = Tokens(torch.log_softmax(logits, -1), entropy, sampler, advantages, sampler.exp(), turn)
    loss, metrics = loss_of(tokens, config, 1.0)
    loss.backward()
    return logits.grad, metrics


def policy_gradient(logits: torch.Tensor, advantages: torch.Tensor) -> torch.Tensor:
    """Of minus the learner's own expected advantage."""
    logits = logits.clone().requires_grad_()
    (-(torch.softmax(logits, -1) * advantages).sum()).backward()
    return logits.grad


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 999), st.sampled_from([0.1, 1.0, 3.0]))
def test_masking_leaves_the_policy_gradient_of_the_words_on_which_both_agree(seed, apart):
    logits, sampler, advantages = distributions(seed, apart)
    config = LearnerConfig(sampler_correction="mask", sampler_high=5.0)
    q = (torch.log_softmax(logits, -1) - sampler).exp()
    agreed = (q >= 0.5) & (q <= 5.0)
    found, metrics = expected_gradient(logits, sampler, advantages, config)
    logprobs = torch.log_softmax(logits, -1)
    gradients = torch.eye(WORDS) - logprobs.exp()  # row: of the log-prob of a word
    torch.testing.assert_close(found, -((logprobs.exp() * advantages * agreed)[:, None] * gradients).sum(0), **EXACT)
    if agreed.all():
        torch.testing.assert_close(found, policy_gradient(logits, advantages), **EXACT)
    assert metrics["corrected_tokens"] == (~agreed).sum()


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 999), st.sampled_from([0.1, 1.0]))
def test_truncating_nothing_makes_the_policy_gradient_and_no_correction_does_not(seed, apart):
    logits, sampler, advantages = distributions(seed, apart)
    expected = policy_gradient(logits, advantages)
    found, metrics = expected_gradient(logits, sampler, advantages, LearnerConfig(sampler_correction="truncate", sampler_high=1e6))
    torch.testing.assert_close(found, expected, **EXACT)
    assert metrics["corrected_tokens"] == 0
    clipped, _ = expected_gradient(logits, sampler, advantages, LearnerConfig(sampler_correction="truncate", sampler_high=1.0))
    below = (torch.log_softmax(logits, -1) < sampler).all()
    assert below or not torch.allclose(clipped, expected, **EXACT)


@given(st.floats(0.01, 100), st.floats(0.01, 1), st.floats(1, 50))
def test_the_weights_are_those_of_the_papers(q, low, high):
    def weight(kind: str) -> float:
        return float(
            sampler_weights(
                torch.tensor(q, dtype=torch.float64), LearnerConfig(sampler_correction=kind, sampler_low=low, sampler_high=high)
            )
        )

    assert weight("truncate") == min(q, high)
    assert weight("mask") == (q if low <= q <= high else 0.0)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 999), st.floats(0.0, 0.5))
def test_the_trust_region_is_equation_12_of_dppo_by_total_variation(seed, bound):
    logits, sampler, advantages = distributions(seed, 1.0)
    p, p_sampler = torch.softmax(logits, -1), sampler.exp()
    ratio, divergence = p / p_sampler, (p - p_sampler).abs()
    away = ((advantages > 0) & (ratio > 1)) | ((advantages < 0) & (ratio < 1))
    held = outside_trust_region(p.log(), sampler, advantages, bound, bound)
    assert torch.equal(held, away & (divergence > bound))
    found, metrics = expected_gradient(logits, sampler, advantages, LearnerConfig(surrogate="dppo", clip_low=bound, clip_high=bound))
    torch.testing.assert_close(found, -((p * advantages * ~held)[:, None] * (torch.eye(WORDS) - p)).sum(0), **EXACT)
    assert metrics["clip_fraction"] == held.sum()


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 999))
def test_within_the_trust_region_dppo_makes_the_policy_gradient_whatever_the_sampler(seed):
    logits, sampler, advantages = distributions(seed, 1.0)
    found, _ = expected_gradient(logits, sampler, advantages, LearnerConfig(surrogate="dppo", clip_low=1.0, clip_high=1.0))
    torch.testing.assert_close(found, policy_gradient(logits, advantages), **EXACT)


@pytest.mark.parametrize(
    ("before", "now", "advantage", "by_ratio", "by_probability"),
    [(0.01, 0.03, 1.0, True, False), (0.5, 0.59, 1.0, False, False), (0.7, 0.95, 1.0, True, True), (0.9, 0.65, -1.0, True, True),
     (0.02, 0.001, -1.0, True, False), (0.9, 0.5, 1.0, False, False)],
)  # fmt: skip
def test_a_rare_word_may_move_by_any_ratio_and_a_frequent_one_by_little(before, now, advantage, by_ratio, by_probability):
    def learns(surrogate: str) -> bool:
        logprob = torch.tensor([now]).log().requires_grad_()
        tokens = Tokens(
            logprob,
            torch.zeros(1),
            torch.tensor([before]).log(),
            torch.tensor([advantage]),
            torch.ones(1),
            torch.zeros(1, dtype=torch.int64),
        )
        loss, metrics = loss_of(tokens, LearnerConfig(surrogate=surrogate), 1.0)
        loss.backward()
        assert bool(metrics["clip_fraction"]) is not bool(logprob.grad)
        return bool(logprob.grad)

    assert learns("clip") is not by_ratio
    assert learns("dppo") is not by_probability


def test_the_mismatch_is_measured_in_probabilities_too():
    logits, sampler, advantages = distributions(0, 1.0)
    _, metrics = expected_gradient(logits, sampler, advantages, LearnerConfig())
    assert metrics["mismatch_tv"].item() == pytest.approx((torch.softmax(logits, -1) - sampler.exp()).abs().sum().item(), abs=1e-6)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 999))
def test_a_response_of_two_versions_is_corrected_token_by_token(seed):
    """An old version drew the first word, a newer one the second: the gradient is the learner's own behind each of them, which it is not where
    the log-probs of one version stand for both."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    firsts, seconds, advantages = draw(WORDS).requires_grad_(), draw(WORDS, WORDS).requires_grad_(), draw(WORDS, WORDS)
    old = torch.log_softmax(firsts.detach() + draw(WORDS), -1)[:, None].expand(WORDS, WORDS)
    new_first = torch.log_softmax(firsts.detach() + draw(WORDS), -1)[:, None].expand(WORDS, WORDS)
    new = torch.log_softmax(seconds.detach() + draw(WORDS, WORDS), -1)
    weights = (old + new).exp()  # of every pair of words: how often the two versions draw it
    first, second = torch.log_softmax(firsts, -1), torch.log_softmax(seconds, -1)
    objective = -(first.exp() * (new.exp() * advantages).sum(1)).sum() - (old.exp() * second.exp() * advantages).sum()
    expected = torch.autograd.grad(objective, (firsts, seconds), retain_graph=True)

    def found(recorded: torch.Tensor) -> tuple[torch.Tensor, ...]:
        flat = [torch.stack(pair).flatten() for pair in ((first[:, None].expand(WORDS, WORDS), second), (recorded, new))]
        both, turn = [torch.stack([part, part]).flatten() for part in (advantages, weights)], torch.arange(WORDS * WORDS).repeat(2)
        tokens = Tokens(flat[0], torch.zeros(len(turn)), flat[1], *both, turn)
        config = LearnerConfig(sampler_correction="truncate", sampler_high=1e6)
        return torch.autograd.grad(loss_of(tokens, config, 1.0)[0], (firsts, seconds), retain_graph=True)

    torch.testing.assert_close(found(old), expected, **EXACT)
    assert not torch.allclose(found(new_first)[0], expected[0], atol=1e-3)
