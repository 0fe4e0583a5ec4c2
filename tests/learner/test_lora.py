"""What is trained, and what everybody else sees of it: adapters, frozen parts, activations computed again."""

from dataclasses import replace

import pytest
import torch
from local_rows import rows_of
from tiny_turns import group, picture, plain_logprobs

from learner.config import LearnerConfig
from learner.objective.token_logprobs import Scorer, inputs_of, packed
from learner.ranks.deepspeed_engine import prepare, published_parameters, without_adapters
from rollout.policies import Policy, load_policy

LORA = LearnerConfig(lora_rank=4)


@pytest.fixture
def fresh(policy_path) -> Policy:
    return load_policy(policy_path)


@pytest.fixture(scope="module")
def seen(policy):
    return group(policy, 1, 4, picture(1)) + group(policy, 2, 3)


def logprobs(policy: Policy, turns) -> torch.Tensor:
    rows = rows_of(turns, [1.0] * len(turns), [1.0] * len(turns), 10_000)
    return Scorer(policy)(**inputs_of(packed(rows, policy), policy, policy.device))[0]


def gradients(policy: Policy, turns) -> dict[str, torch.Tensor]:
    logprobs(policy, turns).sum().backward()
    return {name: p.grad for name, p in policy.model.named_parameters() if p.grad is not None}


def adapted(policy: Policy) -> Policy:
    """With adapters that do something: fresh ones are 0."""
    prepare(policy, LORA)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in policy.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1, generator=generator)
    return policy


def test_fresh_adapters_change_nothing_and_are_all_that_is_trained(fresh, policy, seen):
    prepare(fresh, LORA)
    torch.testing.assert_close(logprobs(fresh, seen), logprobs(policy, seen), atol=0, rtol=0)
    found = gradients(fresh, seen)
    assert found
    assert all(".lora_" in name and ".visual." not in name for name in found)
    assert {name for name, p in fresh.model.named_parameters() if p.requires_grad} == set(found)


def test_published_are_merged_weights_under_the_names_of_the_policy(fresh, policy_path, seen):
    adapted(fresh)
    merged = load_policy(policy_path)
    published = dict(published_parameters(fresh.model, partitioned=False))
    assert published.keys() == dict(merged.model.named_parameters()).keys()
    with torch.no_grad():
        for name, parameter in merged.model.named_parameters():
            parameter.copy_(published[name])
        expected = torch.cat([plain_logprobs(merged, t.prompt_ids, t.image, t.turn.response_ids) for t in seen])
        torch.testing.assert_close(logprobs(fresh, seen), expected, atol=1e-4, rtol=0)
        assert (expected - torch.cat([torch.from_numpy(t.turn.logprobs) for t in seen])).abs().max() > 0.01


def test_a_policy_without_adapters_publishes_its_own_tensors(policy):
    assert all(a[0] == b[0] and a[1].data_ptr() == b[1].data_ptr() for a, b in zip(
        published_parameters(policy.model, partitioned=False), policy.model.named_parameters(), strict=True
    ))  # fmt: skip


def test_with_its_adapters_switched_off_the_model_is_the_reference_and_switched_on_it_learns_again(fresh, policy, seen):
    adapted(fresh)
    before = logprobs(fresh, seen)
    with torch.no_grad(), without_adapters(fresh.model):
        torch.testing.assert_close(logprobs(fresh, seen), logprobs(policy, seen), atol=0, rtol=0)
    before.sum().backward()
    during = {name: p.grad.clone() for name, p in fresh.model.named_parameters() if p.grad is not None}
    fresh.model.zero_grad()
    again = gradients(fresh, seen)
    assert during.keys() == again.keys()
    for name, gradient in during.items():
        torch.testing.assert_close(gradient, again[name], atol=0, rtol=0)


def test_a_target_that_no_layer_has_is_refused_with_the_names_that_there_are(fresh):
    with pytest.raises(ValueError, match=r"learner.lora_targets names 'query'.*expected some of \['down_proj', .*'v_proj'\]"):
        prepare(fresh, replace(LORA, lora_targets=["query"]))


def test_a_frozen_vision_tower_gets_no_gradients_and_all_else_the_same_ones(fresh, policy_path, seen):
    prepare(fresh, LearnerConfig(freeze_vision=True))
    frozen, whole = gradients(fresh, seen), gradients(load_policy(policy_path), seen)
    assert {name for name in whole if ".visual." not in name} == set(frozen) < set(whole)
    for name, gradient in frozen.items():
        torch.testing.assert_close(gradient, whole[name], atol=1e-6, rtol=1e-5)


def test_activations_computed_again_give_the_same_gradients_and_less_is_kept(fresh, policy_path, seen):
    prepare(fresh, LearnerConfig(gradient_checkpointing=True))
    again, kept = gradients(fresh, seen), gradients(load_policy(policy_path), seen)
    assert again.keys() == kept.keys()
    for name, gradient in again.items():
        torch.testing.assert_close(gradient, kept[name], atol=1e-6, rtol=1e-5)
    assert kept_bytes(fresh, seen) < 0.6 * kept_bytes(load_policy(policy_path), seen)


def kept_bytes(policy: Policy, turns) -> int:
    """Of distinct storages that the forward pass keeps for the backward pass."""
    storages = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    own = {p.untyped_storage().data_ptr() for p in policy.model.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logprobs(policy, turns)
    return sum(t.untyped_storage().nbytes() for pointer, t in storages.items() if pointer not in own)
