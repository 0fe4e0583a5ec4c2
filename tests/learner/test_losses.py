import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from learner.config import LearnerConfig
from learner.objective.losses import Tokens, loss_of


def tokens(n: int, seed: int):
    generator = torch.Generator().manual_seed(seed)
    old = -3 * torch.rand(n, generator=generator)
    new = (old + 0.5 * torch.randn(n, generator=generator)).requires_grad_()
    return new, old, torch.randn(n, generator=generator), torch.rand(n, generator=generator)


def policy_loss(new, old, advantages, weights, denominator, **more):
    one_turn = torch.zeros(len(new), dtype=torch.int64)
    tokens = Tokens(new, torch.zeros(len(new)), old, advantages, weights, one_turn, **more)
    return loss_of(tokens, LearnerConfig(clip_low=0.2, clip_high=0.28, kl_weight=1.0), denominator)


@settings(deadline=None)
@given(st.integers(1, 60), st.integers(0, 99), st.lists(st.integers(0, 60), max_size=5))
def test_loss_and_gradient_do_not_depend_on_how_the_batch_is_cut(n, seed, cuts):
    new, old, advantages, weights = tokens(n, seed)
    denominator = float(weights.sum())
    whole, _ = policy_loss(new, old, advantages, weights, denominator)
    whole.backward()
    expected, new.grad = new.grad.clone(), None
    edges = sorted({0, n, *(cut for cut in cuts if cut < n)})
    total = 0.0
    for a, b in itertools.pairwise(edges):
        part, _ = policy_loss(new[a:b], old[a:b], advantages[a:b], weights[a:b], denominator)
        part.backward()
        total += part.item()
    assert total == pytest.approx(whole.item(), rel=1e-4, abs=1e-5)
    torch.testing.assert_close(new.grad, expected)


def test_on_policy_the_gradient_is_the_policy_gradient():
    _, old, advantages, weights = tokens(20, 0)
    new = old.clone().requires_grad_()
    loss, metrics = policy_loss(new, old, advantages, weights, 20.0)
    loss.backward()
    torch.testing.assert_close(new.grad, -weights * advantages / 20)
    assert metrics["ratio"] == 20
    assert metrics["clip_fraction"] == 0
    assert metrics["mismatch"] == 0


@pytest.mark.parametrize(
    ("ratio", "advantage", "moves"), [(1.5, 1.0, False), (1.5, -1.0, True), (0.5, 1.0, True), (0.5, -1.0, False), (1.25, 1.0, True)]
)
def test_a_token_that_has_moved_far_enough_in_the_wanted_direction_is_left_alone(ratio, advantage, moves):
    new = torch.tensor([ratio]).log().requires_grad_()
    loss, metrics = policy_loss(new, torch.zeros(1), torch.tensor([advantage]), torch.ones(1), 1.0)
    loss.backward()
    assert bool(new.grad.abs() > 0) is moves
    assert bool(metrics["clip_fraction"]) is not moves


@given(st.integers(0, 99))
def test_kl_is_never_negative_and_zero_only_for_equal_policies(seed):
    new, reference, _, weights = tokens(10, seed)
    kl, metrics = policy_loss(new, new.detach(), torch.zeros(10), weights, 1.0, reference_logprobs=reference)
    assert kl >= 0
    assert metrics["kl"] > 0
    assert policy_loss(new, new.detach(), torch.zeros(10), weights, 1.0, reference_logprobs=new.detach())[0] == 0


def test_no_tokens_cost_nothing():
    empty = torch.zeros(0, requires_grad=True)
    loss, metrics = policy_loss(empty, torch.zeros(0), torch.zeros(0), torch.zeros(0), 1.0)
    loss.backward()
    assert loss == 0
    assert metrics["tokens"] == 0
    assert metrics["mismatch_max"] == 0
