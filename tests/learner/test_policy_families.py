"""Every family in the learner: packed rows give the log-probs of a plain forward pass, an update moves all of it, adapters reach the rollout."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from local_rows import rows_of
from policy_families import FAMILIES, WITH_PICTURES, saved_family
from tiny_turns import group, picture, plain_logprobs

from learner.config import LearnerConfig
from learner.objective.token_logprobs import Scorer, inputs_of, packed
from learner.ranks.deepspeed_engine import prepare, published_parameters
from rollout.engines.base import Request, Sampling, generate
from rollout.engines.transformers_engine import TransformersEngine
from rollout.policies import Policy, load_policy


def turns_of(policy: Policy):
    return group(policy, 1, 4, picture(1)) + group(policy, 2, 3) + group(policy, 3, 2, picture(2)) + group(policy, 4, 2, picture(1))


def logprobs(scorer: Scorer, policy: Policy, turns) -> torch.Tensor:
    rows = rows_of(turns, [1.0] * len(turns), [1.0] * len(turns), 10_000)
    return scorer(**inputs_of(packed(rows, policy), policy, policy.device))[0]


def plain(policy: Policy, turns) -> torch.Tensor:
    return torch.cat([plain_logprobs(policy, turn.prompt_ids, turn.image, turn.turn.response_ids) for turn in turns])


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_log_probs_are_those_of_a_plain_forward_pass_also_after_an_update(family):
    policy = load_policy(saved_family(family))
    turns, scorer = turns_of(policy), Scorer(policy)
    found, expected = logprobs(scorer, policy, turns), plain(policy, turns)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    names = dict(policy.model.named_parameters())
    gradients = [torch.autograd.grad(score.sum(), list(names.values()), allow_unused=True) for score in (found, expected)]
    for name, ours, theirs in zip(names, *gradients, strict=True):
        if theirs is not None:
            torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3, msg=lambda text, name=name: f"{name}: {text}")
    with torch.no_grad():
        for parameter, gradient in zip(names.values(), gradients[0], strict=True):
            if gradient is not None:
                parameter += 0.01 * gradient.sign() * parameter.std().nan_to_num()
        after = logprobs(scorer, policy, turns)
        torch.testing.assert_close(after, plain(policy, turns), atol=1e-4, rtol=0)
    assert (after - found).abs().max() > 0.01


@pytest.mark.parametrize("family", WITH_PICTURES)
def test_without_pictures_the_same_modules_run(family):
    """All ranks have to, whatever rows they got."""
    policy = load_policy(saved_family(family))
    score = logprobs(Scorer(policy), policy, group(policy, 2, 3)).sum()
    unused = [
        name
        for name, g in zip(
            dict(policy.model.named_parameters()),
            torch.autograd.grad(score, list(policy.model.parameters()), allow_unused=True),
            strict=True,
        )
        if g is None
    ]
    assert not unused


@pytest.mark.parametrize("family", ["llama", "qwen3", "qwen3-vl", "smolvlm"])
def test_adapters_change_what_is_sampled_right_after_the_update(family):
    policy, learned = load_policy(saved_family(family)), load_policy(saved_family(family))
    prepare(learned, LearnerConfig(lora_rank=4, lora_targets=["q_proj", "down_proj"]))
    engine, generator = TransformersEngine(policy), torch.Generator().manual_seed(0)
    requests = [Request(turn.prompt_ids, turn.image, 1, 5, Sampling(max_new_tokens=12)) for turn in turns_of(policy)[::3]]
    sampled = []
    for version, std in enumerate((0.0, 0.5)):
        for name, parameter in learned.model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=std, generator=generator)
        engine.update_weights(version, dict(published_parameters(learned.model, partitioned=False)))
        sampled.append([responses[0] for responses in generate(engine, requests)])
        for request, response in zip(requests, sampled[-1], strict=True):
            expected = plain_logprobs(learned, request.prompt_ids, request.image, response.ids).detach().numpy()
            np.testing.assert_allclose(response.logprobs, expected, atol=1e-4)
            assert response.policy_version == version
    assert any(before.ids.tolist() != after.ids.tolist() for before, after in zip(*sampled, strict=True))
