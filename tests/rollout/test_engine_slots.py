"""Requests that come, wait, run and leave: continuous batching, and what an update, an abort or a pause does to those under way."""

from __future__ import annotations

import builtins
import itertools
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from experiments.teacher import demonstrations
from rollout.config import RolloutConfig
from rollout.engines.base import Request, Sampling, generate
from rollout.engines.choose import make_engine
from rollout.engines.key_value_cache import shelf_length
from rollout.engines.transformers_engine import TransformersEngine
from rollout.policy import Policy
from tests.rollout.test_engine import plain_logprobs

SAMPLINGS = (Sampling(max_new_tokens=20), Sampling(0.7, 0.9, 20, 9), Sampling(0.0, max_new_tokens=12), Sampling(1.3, max_new_tokens=33))


@pytest.fixture(scope="module")
def requests(fresh_policy) -> list[Request]:
    """Pictures and text, short and long prompts, groups of all sizes, four samplings."""
    turns = list(itertools.islice(demonstrations(17), 160))
    turns = [turn for turn in turns if turn.image][:12] + [turn for turn in turns if not turn.image][:28]
    sizes = itertools.cycle((8, 1, 3, 8, 2, 11, 8))
    return [
        Request(fresh_policy.encode(turn.message, turn.image), turn.image, next(sizes), seed, SAMPLINGS[seed % 4])
        for seed, turn in enumerate(turns)
    ]


@pytest.fixture(scope="module")
def alone(fresh_policy, requests):
    """Every request in an engine that has nothing else to do."""
    engine = TransformersEngine(fresh_policy)
    return [generate(engine, [request])[0] for request in requests]


def assert_same_bits(found, expected):
    for one, other in zip(found, expected, strict=True):
        for response, wanted in zip(one, other, strict=True):
            assert response.ids.tolist() == wanted.ids.tolist()
            assert response.logprobs.tobytes() == wanted.logprobs.tobytes()
            assert response.sampled_logprobs.tobytes() == wanted.sampled_logprobs.tobytes()
            assert response.finish_reason == wanted.finish_reason


def drain(engine):
    found = {}
    while engine.unfinished:
        found |= {(done.ticket, done.sibling): done.response for done in engine.collect()}
    return found


@pytest.mark.parametrize(("slots", "batch_tokens"), [(256, 65536), (64, 4096), (5, 1500)])
def test_a_crowd_gives_every_request_the_same_bits_as_alone(fresh_policy, requests, alone, slots, batch_tokens):
    order = list(range(len(requests)))
    random.Random(slots).shuffle(order)
    found = generate(TransformersEngine(fresh_policy, slots, batch_tokens), [requests[i] for i in order])
    assert_same_bits(found, [alone[i] for i in order])


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.permutations(range(12)), steps=st.lists(st.integers(0, 3), min_size=12, max_size=12), slots=st.integers(1, 30))
def test_requests_that_enter_while_others_run_change_nothing(fresh_policy, requests, alone, order, steps, slots):
    engine = TransformersEngine(fresh_policy, slots)
    tickets, found = {}, {}
    for i, wait in zip(order, steps, strict=True):
        tickets[i] = engine.submit(requests[i])
        for _ in range(wait):
            found |= {(done.ticket, done.sibling): done.response for done in engine.collect()}
    found |= drain(engine)
    assert_same_bits([[found[tickets[i], j] for j in range(requests[i].siblings)] for i in order], [alone[i] for i in order])


def test_siblings_that_share_a_prefill_equal_requests_of_their_own(fresh_policy, requests):
    together = TransformersEngine(fresh_policy)
    (shared,) = generate(together, [replace(requests[3], siblings=8)])
    apart = TransformersEngine(fresh_policy)
    for siblings in range(1, 9):
        (own,) = generate(apart, [replace(requests[3], siblings=siblings)])
        assert own[-1].ids.tolist() == shared[siblings - 1].ids.tolist()
        np.testing.assert_allclose(own[-1].logprobs, shared[siblings - 1].logprobs, atol=1e-5)
    assert together.stats.prefilled_tokens == len(requests[3].prompt_ids)
    assert apart.stats.prefilled_tokens == 8 * len(requests[3].prompt_ids)


def test_requests_of_one_prompt_that_enter_together_are_read_once(fresh_policy, requests):
    pictured, plain = requests[0], requests[-1]
    apart = [replace(request, siblings=1, seed=100 + copy) for request in (pictured, plain) for copy in range(6)]
    expected = [generate(TransformersEngine(fresh_policy), [request])[0] for request in apart]
    engine = TransformersEngine(fresh_policy)
    assert_same_bits(generate(engine, apart), expected)
    assert engine.stats.prefilled_tokens == len(pictured.prompt_ids) + len(plain.prompt_ids)


def test_finished_responses_leave_at_once_and_waiting_ones_take_their_slots(fresh_policy, requests):
    text = [replace(request, siblings=4, sampling=Sampling(max_new_tokens=24)) for request in requests]
    engine = TransformersEngine(fresh_policy, slots=16)
    for request in text:
        engine.submit(request)
    handed_out, most = [], 0
    while engine.unfinished > 16:
        handed_out.append(len(engine.collect()))
    assert max(handed_out) < 16
    most = engine.stats.slot_steps_used / engine.stats.slot_steps_available
    assert most > 0.95
    drain(engine)


def test_an_update_in_mid_flight_leaves_nothing_of_the_old_weights(fresh_policy, requests, tmp_path):
    fresh_policy.save(tmp_path)
    policy = type(fresh_policy).load(tmp_path)
    engine = TransformersEngine(policy, slots=24)
    weights = {name: tensor + 0.05 * torch.randn_like(tensor) for name, tensor in policy.model.named_parameters()}
    tickets = {engine.submit(request): request for request in requests[:16]}
    before = {(done.ticket, done.sibling) for _ in range(4) for done in engine.collect()}
    assert engine.stats.sampled_tokens > 0
    engine.update_weights(7, weights)
    after = drain(engine)
    assert len(before) + len(after) == sum(request.siblings for request in tickets.values())
    assert before.isdisjoint(after)
    assert {response.policy_version for response in after.values()} == {7}
    for (ticket, _), response in itertools.islice(after.items(), 0, None, 3):
        expected = plain_logprobs(policy, tickets[ticket], response.ids)
        np.testing.assert_allclose(response.logprobs, expected, atol=1e-4)
    fresh = TransformersEngine(policy)
    for ticket, request in tickets.items():
        (expected,) = generate(fresh, [request])
        for sibling, response in enumerate(expected):
            if (ticket, sibling) in after:
                assert after[ticket, sibling].ids.tolist() == response.ids.tolist()


def test_short_responses_after_long_ones_and_an_update_fit_their_smaller_cache(fresh_policy, requests):
    engine, short = TransformersEngine(fresh_policy), replace(requests[12], siblings=2, sampling=Sampling(max_new_tokens=5))
    expected = generate(engine, [short])
    generate(engine, [replace(request, sampling=Sampling(max_new_tokens=150)) for request in requests[:4]])
    engine.update_weights(1, {name: tensor.clone() for name, tensor in fresh_policy.model.named_parameters()})
    assert_same_bits(generate(engine, [short]), expected)
    with pytest.raises(ValueError, match="a request for 0 responses"):
        engine.submit(replace(short, siblings=0))


def test_aborted_requests_hand_out_what_they_have_and_the_others_go_on(fresh_policy, requests, alone):
    engine = TransformersEngine(fresh_policy, slots=12)
    tickets = [engine.submit(request) for request in requests[:10]]
    found = {(done.ticket, done.sibling): done.response for _ in range(2) for done in engine.collect()}
    engine.abort([tickets[0], tickets[3], tickets[9], 12345])
    found |= drain(engine)
    for i, ticket in enumerate(tickets):
        for j, whole in enumerate(alone[i]):
            response = found[ticket, j]
            if response.finish_reason == "abort":
                assert i in (0, 3, 9)
                assert response.ids.tolist() == whole.ids[: len(response.ids)].tolist()
                assert len(response.logprobs) == len(response.ids) < len(whole.ids) + 1
            else:
                assert response.ids.tolist() == whole.ids.tolist()
    assert all(found[tickets[9], j].finish_reason == "abort" for j in range(requests[9].siblings))


def test_a_paused_engine_decodes_nothing_and_loses_nothing(fresh_policy, requests, alone):
    engine = TransformersEngine(fresh_policy, slots=12)
    first = engine.submit(requests[0])
    found = {(done.ticket, done.sibling): done.response for done in engine.collect()}
    engine.pause()
    second, sampled = engine.submit(requests[1]), engine.stats.sampled_tokens
    assert engine.collect() == []
    assert engine.stats.sampled_tokens == sampled
    engine.resume()
    found |= drain(engine)
    assert_same_bits(
        [[found[first, j] for j in range(requests[0].siblings)], [found[second, j] for j in range(requests[1].siblings)]], alone[:2]
    )


def test_a_prompt_that_can_never_fit_is_refused_when_it_is_submitted(fresh_policy, requests):
    longest = fresh_policy.model.config.text_config.max_position_embeddings
    prompt = np.resize(requests[20].prompt_ids, longest)
    with pytest.raises(ValueError, match=f"context of {longest}; lower rollout.passages"):
        TransformersEngine(fresh_policy).submit(Request(prompt, None, 1, 0))
    engine = TransformersEngine(fresh_policy, batch_tokens=1000)
    with pytest.raises(ValueError, match=r"more than rollout\.batch_tokens=1000"):
        engine.submit(Request(prompt[:900], None, 8, 0))
    assert engine.unfinished == 0
    assert len(generate(engine, [replace(requests[0], sampling=Sampling(max_new_tokens=4))])[0]) == requests[0].siblings


@pytest.mark.parametrize("budget", [1200, 3000, 9000])
def test_the_cache_stays_within_its_budget_and_is_given_back(fresh_policy, requests, budget):
    config = fresh_policy.model.config.text_config
    bytes_per_token = 2 * config.num_hidden_layers * config.hidden_size * 4
    engine = TransformersEngine(fresh_policy, batch_tokens=budget)
    found = generate(engine, requests)
    assert [len(group) for group in found] == [request.siblings for request in requests]
    assert 0 < engine.stats.cached_bytes <= engine.stats.cached_bytes_peak <= budget * bytes_per_token
    again = engine.stats.cached_bytes_peak
    generate(engine, requests)
    assert engine.stats.cached_bytes_peak == again


def test_a_group_larger_than_all_slots_ends(fresh_policy, requests):
    engine = TransformersEngine(fresh_policy, slots=10, batch_tokens=1000)
    (group,) = generate(engine, [replace(requests[12], siblings=45, sampling=Sampling(max_new_tokens=6))])
    assert len({tuple(response.ids.tolist()) for response in group}) > 10


def test_pictures_are_encoded_once_until_the_weights_change(fresh_policy, requests, tmp_path):
    fresh_policy.save(tmp_path)
    policy = type(fresh_policy).load(tmp_path)
    seen = []
    policy.model.model.visual.register_forward_hook(lambda *_: seen.append(1))
    engine = TransformersEngine(policy)
    pictured = [replace(requests[0], seed=seed) for seed in range(5)]
    generate(engine, pictured)
    generate(engine, pictured)
    assert len(seen) == 1
    engine.update_weights(1, dict(policy.model.named_parameters()))
    generate(engine, pictured)
    assert len(seen) == 2


def test_in_bfloat16_log_probs_stay_close_to_those_of_a_plain_forward(fresh_policy, requests, tmp_path):
    fresh_policy.save(tmp_path)
    policy = type(fresh_policy).load(tmp_path, dtype="bfloat16")
    for request, responses in zip(requests[:6], generate(TransformersEngine(policy), requests[:6]), strict=True):
        ids = torch.from_numpy(np.concatenate([request.prompt_ids, responses[0].ids]).astype(np.int64))[None]
        pixels, grids = policy.pixels([request.image])
        shown = (ids == policy.image_token_id).int()
        with torch.no_grad():
            logits = policy.model(input_ids=ids, pixel_values=pixels, image_grid_thw=grids, mm_token_type_ids=shown).logits[0]
        plain = logits[len(request.prompt_ids) - 1 : -1].float().log_softmax(-1).gather(1, ids[0, len(request.prompt_ids) :, None])[:, 0]
        assert np.abs(responses[0].logprobs - plain.numpy()).mean() < 0.1


@pytest.mark.parametrize("family", ["Qwen2_5_VL", "Qwen2VL"])
def test_heads_that_share_their_keys_and_the_older_family_work_as_well(fresh_policy, requests, family):
    text = fresh_policy.model.config.get_text_config().to_dict() | {"num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 128}
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e5, "mrope_section": [8, 4, 4]}
    vision = {"depth": 1, "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2, "num_heads": 2}
    if family == "Qwen2VL":
        vision |= {"embed_dim": 64, "hidden_size": 128, "mlp_ratio": 2}
    else:
        vision |= {"hidden_size": 64, "out_hidden_size": 128, "intermediate_size": 96, "window_size": 112, "fullatt_block_indexes": [0]}
    ids = {key: getattr(fresh_policy.model.config, key) for key in ("image_token_id", "video_token_id", "vision_start_token_id")}
    config = getattr(transformers, f"{family}Config")(text_config=text, vision_config=vision, tie_word_embeddings=True, **ids)
    torch.manual_seed(0)
    model = getattr(transformers, f"{family}ForConditionalGeneration")(config)
    policy = Policy(model.eval(), fresh_policy.tokenizer, fresh_policy.image_processor)
    for request, responses in zip(requests[8:16], generate(TransformersEngine(policy), requests[8:16]), strict=True):
        np.testing.assert_allclose(responses[-1].logprobs, plain_logprobs(policy, request, responses[-1].ids), atol=1e-4)


@settings(max_examples=200)
@given(st.integers(1, 100_000))
def test_shelves_hold_their_prompts_and_waste_at_most_a_third(prompt):
    assert prompt <= shelf_length(prompt)
    assert shelf_length(prompt) <= max(64, 1.5 * prompt)


def test_choosing_an_engine_says_what_is_missing(fresh_policy, monkeypatch):
    whole = builtins.__import__

    def without_vllm(name, *rest):
        if name.split(".")[0] == "vllm":
            raise ImportError(name)
        return whole(name, *rest)

    assert isinstance(make_engine(fresh_policy, RolloutConfig()), TransformersEngine)
    with pytest.raises(ValueError, match=r"rollout\.engine is .sglang.; expected transformers or vllm"):
        make_engine(fresh_policy, RolloutConfig(engine="sglang"))
    monkeypatch.setattr(builtins, "__import__", without_vllm)
    with pytest.raises(RuntimeError, match="pip install 'r1-router-ray\\[vllm\\]'"):
        make_engine(fresh_policy, RolloutConfig(engine="vllm"))
