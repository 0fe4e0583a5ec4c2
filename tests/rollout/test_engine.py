from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from experiments.worlds.teacher import demonstrations
from rollout.engines.base import Request, Sampling, generate
from rollout.engines.sampling import truncate
from rollout.engines.transformers_engine import TransformersEngine
from rollout.policies import load_policy


@pytest.fixture(scope="module")
def requests(fresh_policy):
    shown = list(itertools.islice(demonstrations(11), 300))
    turns = [turn for turn in shown if turn.image][:7] + [turn for turn in shown if not turn.image][:7]
    made = [Request(fresh_policy.encode(turn.message, turn.image), turn.image, 3, seed) for seed, turn in enumerate(turns)]
    assert any(request.image for request in made)
    assert any(not request.image for request in made)
    return made


def sample(engine, requests, **sampling):
    return generate(engine, [replace(request, sampling=Sampling(**sampling)) for request in requests])


def plain_logprobs(policy, request, response) -> np.ndarray:
    """By the library's own forward pass: one row, no cache; of the distribution that each token was drawn from."""
    ids = torch.from_numpy(np.concatenate([request.prompt_ids, response.ids]).astype(np.int64))[None]
    pictured = policy.pictured(ids, [request.image] if request.image else [])
    with torch.no_grad():
        logits = policy.model(input_ids=ids, **pictured).logits[0, len(request.prompt_ids) - 1 : -1].float()
    sampling = request.sampling
    if sampling.temperature not in (0, 1):
        logits[:, list(policy.banned_token_ids)] = -torch.inf
        logits /= sampling.temperature
    if response.allowed:
        for row, drawn_from in zip(logits, np.split(response.allowed.ids, np.cumsum(response.allowed.sizes)[:-1]), strict=True):
            row[np.setdiff1d(np.arange(len(row)), drawn_from)] = -torch.inf
    return logits.log_softmax(-1).gather(1, ids[0, len(request.prompt_ids) :, None])[:, 0].numpy()


def test_logprobs_equal_a_plain_forward_pass_with_and_without_pictures(engine, requests):
    for request, responses in zip(requests, sample(engine, requests, max_new_tokens=12), strict=True):
        for response in responses:
            np.testing.assert_allclose(response.logprobs, plain_logprobs(engine.policy, request, response), atol=1e-4)


def test_greedy_equals_the_library_s_generate(engine, requests):
    for request in requests[:6]:
        (response,) = sample(engine, [Request(request.prompt_ids, request.image, 1, 0)], temperature=0, max_new_tokens=10)[0]
        ids = torch.from_numpy(request.prompt_ids.astype(np.int64))[None]
        pictured = engine.policy.pictured(ids, [request.image] if request.image else [])
        banned = list(engine.policy.banned_token_ids)
        expected = engine.policy.model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=10, suppress_tokens=banned, **pictured
        )
        assert response.ids.tolist() == expected[0, ids.shape[1] :].tolist()


def test_a_response_does_not_depend_on_what_else_is_in_the_batch(engine, requests):
    together = sample(engine, requests, max_new_tokens=12)
    for request, siblings in zip(requests, together, strict=True):
        (alone,) = sample(engine, [request], max_new_tokens=12)
        assert [response.ids.tolist() for response in alone] == [response.ids.tolist() for response in siblings]


def test_a_token_budget_changes_nothing_but_the_batches(fresh_policy, requests):
    whole = sample(TransformersEngine(fresh_policy), requests, max_new_tokens=8)
    cut = sample(TransformersEngine(fresh_policy, batch_tokens=700), requests, max_new_tokens=8)
    assert [[r.ids.tolist() for r in siblings] for siblings in whole] == [[r.ids.tolist() for r in siblings] for siblings in cut]


def test_siblings_differ_and_sample_the_policy_s_own_distribution(engine, requests):
    many = sample(engine, [Request(requests[0].prompt_ids, requests[0].image, 4000, 5)], max_new_tokens=1)[0]
    with torch.no_grad():
        first = torch.from_numpy(requests[0].prompt_ids.astype(np.int64))[None]
        logits = engine.policy.model(input_ids=first).logits[0, -1]
    logits[list(engine.policy.banned_token_ids)] = -torch.inf
    expected = logits.softmax(-1).numpy()
    counts = np.bincount([response.ids[0] for response in many], minlength=len(expected))
    likely = expected > 0.01
    np.testing.assert_allclose(counts[likely] / 4000, expected[likely], atol=5 * np.sqrt(expected.max() / 4000))


def test_special_tokens_are_never_sampled(fresh_policy, requests):
    banned = set(fresh_policy.banned_token_ids)
    assert fresh_policy.image_token_id in banned
    assert fresh_policy.end_token_id not in banned
    responses = sample(TransformersEngine(fresh_policy), requests, temperature=5.0, max_new_tokens=24)
    assert not banned & {token for siblings in responses for response in siblings for token in response.ids.tolist()}


def test_no_requests_is_a_legal_batch(engine):
    assert sample(engine, []) == []


def test_an_update_takes_effect_at_once_and_a_bad_one_changes_nothing(fresh_policy, requests, tmp_path):
    fresh_policy.save(tmp_path)
    engine = TransformersEngine(load_policy(tmp_path))
    before = {name: parameter.clone() for name, parameter in engine.policy.model.named_parameters()}
    with pytest.raises(ValueError, match=r"weights: .* in all\) were not sent"):
        engine.update_weights(1, dict(itertools.islice(before.items(), 3)))
    assert engine.policy_version == -1
    engine.update_weights(2, {name: tensor + 0.05 * torch.randn_like(tensor) for name, tensor in before.items()})
    assert engine.policy_version == 2
    request = requests[0]
    for response in sample(engine, [request], max_new_tokens=8)[0]:
        np.testing.assert_allclose(response.logprobs, plain_logprobs(engine.policy, request, response), atol=1e-4)


def test_top_k_and_top_p_leave_the_nucleus():
    logits = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log()
    assert truncate(logits, 1.0, 2).isfinite().tolist() == [[True, True, False, False]]
    assert truncate(logits, 0.6, 0).isfinite().tolist() == [[True, True, False, False]]
    assert truncate(logits, 0.01, 0).isfinite().tolist() == [[True, False, False, False]]
