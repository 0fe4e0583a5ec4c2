"""The last layer: the same numbers and gradients however many tokens are scored at a time, and no tensor of all tokens and words."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import ray
import torch
from local_rows import rows_of
from torch import nn

from learner.config import LearnerConfig
from learner.objective import token_logprobs as head
from learner.objective.token_logprobs import Head, SampledFrom, piece
from learner.ranks.learner_rank import LearnerRank, MiniBatch

WORDS, HIDDEN, NEVER = 97, 16, (3, 8)


def inputs(tokens: int, words: int = WORDS, hidden: int = HIDDEN, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    lm_head = nn.Linear(hidden, words, bias=False)
    lm_head.weight.data = torch.randn(words, hidden, generator=generator) / hidden**0.5
    return (
        lm_head,
        torch.randn(tokens, hidden, generator=generator).requires_grad_(),
        torch.randint(9, words, (tokens,), generator=generator),
    )


def how_sampled(targets: torch.Tensor) -> SampledFrom:
    """A third at temperature 1 from all words, a third at .7, a third at 1.3 from the target and four others."""
    temperatures = torch.tensor([1.0, 0.7, 1.3])[torch.arange(len(targets)) % 3]
    sizes = torch.where(temperatures == 1.3, 5, 0)
    others = torch.tensor([10, 20, 30, 40])
    ids = [torch.cat([target[None], others[others != target], target[None] - 1][:3])[:5] for target in targets[temperatures == 1.3]]
    sizes[temperatures == 1.3] = torch.tensor([len(found.unique()) for found in ids])
    return SampledFrom(temperatures, sizes, torch.cat([found.unique() for found in ids]))


def by_hand(lm_head, hidden, targets, sampled):
    """Token by token, over a softmax of only those words that could be drawn."""
    logprobs, entropies, start = [], [], 0
    for i, (logits, target) in enumerate(zip(lm_head(hidden), targets.tolist(), strict=True)):
        temperature, size = (1.0, 0) if sampled is None else (float(sampled.temperatures[i]), int(sampled.support_sizes[i]))
        allowed = list(range(WORDS)) if temperature == 1 else [word for word in range(WORDS) if word not in NEVER]
        if size:
            allowed, start = sampled.support_ids[start : start + size].tolist(), start + size
        scores = torch.log_softmax(logits[allowed] / temperature, -1)
        logprobs.append(scores[allowed.index(target)])
        entropies.append(-(scores.exp() * scores).sum())
    return torch.stack(logprobs), torch.stack(entropies)


@pytest.mark.parametrize("limited", [False, True])
@pytest.mark.parametrize("at_once", [1, 7 * WORDS, 10**6])
def test_log_probs_entropies_and_gradients_are_those_of_a_softmax_over_what_could_be_drawn(monkeypatch, at_once, limited):
    monkeypatch.setattr(head, "LOGITS_AT_ONCE", at_once)
    lm_head, hidden, targets = inputs(23)
    sampled = how_sampled(targets) if limited else None
    found, expected = Head(lm_head, NEVER, True)(hidden, targets, sampled), by_hand(lm_head, hidden, targets, sampled)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    of = [hidden, lm_head.weight]
    weights = torch.linspace(-1, 1, 23)
    gradients = [torch.autograd.grad((weights * logprobs + 0.3 * entropy).sum(), of) for logprobs, entropy in (found, expected)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_in_one_piece_the_bits_are_those_of_a_plain_log_softmax():
    lm_head, hidden, targets = inputs(40)
    plain = torch.log_softmax(lm_head(hidden), -1)
    logprobs, entropy = Head(lm_head, NEVER, False)(hidden, targets)
    assert torch.equal(logprobs, plain.gather(1, targets[:, None])[:, 0])
    assert torch.equal(entropy, -(plain.exp() * plain).sum(-1))
    assert not entropy.requires_grad
    found, expected = (torch.autograd.grad(x.sum(), [hidden, lm_head.weight]) for x in (logprobs, plain.gather(1, targets[:, None])))
    assert all(map(torch.equal, found, expected))


def kept_by(model: torch.nn.Module, run) -> int:
    """Bytes of the tensors that autograd keeps of `run`, without the model's own weights; views of one tensor count once."""
    own = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    kept = {}  # the storages themselves are held, or their addresses would be used again

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        result = run()
    del result
    return sum(storage.nbytes() for storage in kept.values())


def test_no_tensor_of_all_tokens_and_words_is_made_or_kept():
    words, tokens = 49_152, 1_400
    lm_head, hidden, targets = inputs(tokens, words, 8)
    scored, largest = Head(lm_head, NEVER, False), 0
    at_once = piece(words)
    assert at_once < tokens / 2

    class Largest(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            made = function(*args, **(kwargs or {}))
            largest = max(
                [largest, *(t.numel() for t in (made if isinstance(made, tuple | list) else [made]) if isinstance(t, torch.Tensor))]
            )
            return made

    with Largest():
        kept = kept_by(lm_head, lambda: scored(hidden, targets)[0].sum())
        scored(hidden, targets)[0].sum().backward()
    assert largest == at_once * words
    assert kept < 4 * at_once * words
    assert hidden.grad.isfinite().all()


class PiecewiseRank(LearnerRank):
    """A learner rank that scores so few tokens at a time."""

    def __init__(self, at_once: int, *arguments):
        super().__init__(*arguments)
        head.LOGITS_AT_ONCE = at_once


ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "engine", [{"zero_stage": 0}, {"zero_stage": 2, "dtype": "bfloat16"}, {"zero_stage": 3, "dtype": "bfloat16"}], ids=str
)
def test_ranks_with_different_numbers_of_pieces_make_the_update_of_whole_ones(ray_cluster, policy_path, turns, engine):
    """The second rank has one short row, so it calls the head's parts less often: with ZeRO 3 both have to gather its weights together."""
    config = LearnerConfig(num_learners=2, entropy_weight=0.1, gradient_checkpointing=True, **engine)
    advantages = [1.0 if i % 2 else -1.0 for i in range(len(turns))]
    rows = sorted(rows_of(turns, advantages, [1.0] * len(turns), 10**6), key=lambda row: row.length)
    shares, total = ([rows[1:], rows[1:]], [rows[:1], []]), sum(row.weight for row in [*rows[1:], *rows])
    found = []
    for at_once in (10**9, 3 * 320):
        ranks = [ray.remote(PiecewiseRank).options(num_cpus=0.1).remote(at_once, rank, 2, config, policy_path) for rank in range(2)]
        address = ray.get(ranks[0].address.remote())
        ray.get([rank.connect.remote(*address) for rank in ranks])
        ray.get([rank.build.remote(config) for rank in ranks])
        steps = [MiniBatch(share, total, 1e-3) for share in shares]
        updates = [ray.get([rank.update.remote([step]) for rank, step in zip(ranks, steps, strict=True)], timeout=120) for _ in range(2)]
        found.append([(sum(rank[0]["loss"] for rank in update), update[0][0]["grad_norm"]) for update in updates])
        for rank in ranks:
            ray.kill(rank)
    np.testing.assert_allclose(*found, rtol=2e-2 if "dtype" in engine else 1e-3)
