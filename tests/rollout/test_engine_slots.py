"""Requests that come, wait, run and leave: continuous batching, and what an update or an abort does to those under way."""

from __future__ import annotations

import builtins
import contextlib
import gc
import itertools
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from experiments.worlds.teacher import demonstrations
from rollout.config import RolloutConfig
from rollout.engines import chosen_engine, make_engine
from rollout.engines.base import Request, Sampling, generate
from rollout.engines.key_value_cache import bucket_length
from rollout.engines.transformers_engine import TransformersEngine
from rollout.policies import load_policy
from rollout.policies.qwen_vl import QwenVLPolicy
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
            assert response.finish_reason == wanted.finish_reason
            assert response.temperature == wanted.temperature
            assert (response.allowed is None) == (wanted.allowed is None)
            if response.allowed:
                assert response.allowed.ids.tobytes() == wanted.allowed.ids.tobytes()
                assert response.allowed.sizes.tolist() == wanted.allowed.sizes.tolist()


def drain(engine):
    found = {}
    while engine.unfinished:
        found |= {(done.ticket, done.sibling): done for done in engine.collect()}
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
            found |= {(done.ticket, done.sibling): done for done in engine.collect()}
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
    policy = load_policy(tmp_path)
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
        expected = plain_logprobs(policy, tickets[ticket], response)
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


def test_aborted_requests_are_forgotten_and_the_others_go_on(fresh_policy, requests, alone):
    engine = TransformersEngine(fresh_policy, slots=12)
    tickets = [engine.submit(request) for request in requests[:10]]
    for _ in range(2):
        engine.collect()
    given_up = (0, 3, 9)  # under way, waiting
    engine.abort([*(tickets[i] for i in given_up), 12345])
    found = drain(engine)
    assert {ticket for ticket, _ in found}.isdisjoint(tickets[i] for i in given_up)
    for (ticket, sibling), response in found.items():
        assert response.ids.tolist() == alone[tickets.index(ticket)][sibling].ids.tolist()
    assert {ticket for ticket, _ in found} >= set(tickets[4:9])
    assert_same_bits(generate(engine, requests[:3]), alone[:3])


@contextlib.contextmanager
def failing(module, k, error=RuntimeError):
    """The k-th forward pass of the module, counted from 0, raises."""
    calls = itertools.count()

    def count(*_):
        if next(calls) == k:
            raise error("out of memory")

    hook = module.register_forward_pre_hook(count)
    try:
        with pytest.raises(error, match="out of memory"):
            yield
    finally:
        hook.remove()


@pytest.mark.parametrize(
    ("part", "k"), [("language_model", 0), ("language_model", 5), ("head", 0), ("head", 1), ("head", 5), ("visual", 0)]
)
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_anywhere_leaves_the_engine_reusable(fresh_policy, requests, alone, part, k, error):
    module = fresh_policy.model.lm_head if part == "head" else getattr(fresh_policy.model.model, part)
    engine = TransformersEngine(fresh_policy, slots=12)
    with failing(module, k, error):
        generate(engine, requests[:5])
    assert engine.unfinished == 0
    assert_same_bits(generate(engine, requests[2:6]), alone[2:6])


def test_what_failed_once_can_be_tried_again_and_gives_the_same_bits(fresh_policy, requests, alone):
    engine = TransformersEngine(fresh_policy, slots=12)
    tickets = [engine.submit(request) for request in requests[:6]]
    found = {}
    for k in (0, 1, 3, 20):
        with failing(fresh_policy.model.lm_head, k):
            while True:
                found |= {(done.ticket, done.sibling): done for done in engine.collect()}
    found |= drain(engine)
    assert_same_bits([[found[ticket, j] for j in range(requests[i].siblings)] for i, ticket in enumerate(tickets)], alone[:6])


def test_a_request_that_is_refused_takes_back_those_that_were_submitted_with_it(fresh_policy, requests, alone):
    engine = TransformersEngine(fresh_policy)
    with pytest.raises(ValueError, match="a request for 0 responses"):
        generate(engine, [requests[0], replace(requests[1], siblings=0)])
    assert engine.unfinished == 0
    assert_same_bits(generate(engine, requests[1:2]), alone[1:2])


def test_nothing_is_kept_of_the_temperatures_that_clients_chose(fresh_policy, requests):
    engine, (first, *rest) = TransformersEngine(fresh_policy), (0.5 + i / 1000 for i in range(60))
    short = replace(requests[20], siblings=1)

    def held_after(*temperatures):
        for temperature in temperatures:
            generate(engine, [replace(short, sampling=Sampling(temperature, 0.9, max_new_tokens=1))])
        gc.collect()
        return sum(isinstance(thing, Sampling) for thing in gc.get_objects())

    before = held_after(first)
    assert held_after(*rest) <= before


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
    engine, held = TransformersEngine(fresh_policy, batch_tokens=budget), []

    def noted(collect=engine.collect, **wait):
        found = collect(**wait)
        held.append(engine._cache._budget - engine._cache._left())
        return found

    engine.collect = noted
    found = generate(engine, requests)
    assert [len(group) for group in found] == [request.siblings for request in requests]
    peak = max(held)
    assert 0 < held[-1] <= peak <= budget
    generate(engine, requests)
    assert max(held) == peak


def test_a_group_larger_than_all_slots_ends(fresh_policy, requests):
    engine = TransformersEngine(fresh_policy, slots=10, batch_tokens=1000)
    (group,) = generate(engine, [replace(requests[12], siblings=45, sampling=Sampling(max_new_tokens=6))])
    assert len({tuple(response.ids.tolist()) for response in group}) > 10


def test_pictures_are_encoded_once_until_the_weights_change(fresh_policy, requests, tmp_path):
    fresh_policy.save(tmp_path)
    policy = load_policy(tmp_path)
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
    policy = load_policy(tmp_path, dtype="bfloat16")
    for request, responses in zip(requests[:6], generate(TransformersEngine(policy), requests[:6]), strict=True):
        plain = plain_logprobs(policy, request, responses[0])
        assert np.abs(responses[0].logprobs - plain).mean() < 0.1


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
    policy = QwenVLPolicy(model.eval(), fresh_policy.tokenizer, fresh_policy.image_processor)
    for request, responses in zip(requests[8:16], generate(TransformersEngine(policy), requests[8:16]), strict=True):
        np.testing.assert_allclose(responses[-1].logprobs, plain_logprobs(policy, request, responses[-1]), atol=1e-4)


@settings(max_examples=200)
@given(st.integers(1, 100_000))
def test_buckets_hold_their_prompts_and_waste_at_most_a_third(prompt):
    assert prompt <= bucket_length(prompt)
    assert bucket_length(prompt) <= max(64, 1.5 * prompt)


def test_choosing_an_engine_says_what_is_missing(fresh_policy, tmp_path, monkeypatch):
    whole = builtins.__import__

    def without_vllm(name, *rest):
        if name.split(".")[0] == "vllm":
            raise ImportError(name)
        return whole(name, *rest)

    fresh_policy.save(tmp_path)
    assert isinstance(make_engine(str(tmp_path), RolloutConfig(), "float32", on_gpu=False), TransformersEngine)
    monkeypatch.setattr(builtins, "__import__", without_vllm)
    with pytest.raises(RuntimeError, match="pip install 'r1-router-ray\\[vllm\\]'"):
        make_engine(str(tmp_path), RolloutConfig(engine="vllm"), "float32", on_gpu=False)


def test_vllm_is_chosen_on_gpus_where_it_is_installed_and_the_settings_suit_it(monkeypatch):
    for installed in (False, True):
        monkeypatch.setattr("rollout.engines.find_spec", lambda name, installed=installed: installed or None)
        assert chosen_engine(RolloutConfig(), on_gpu=True) == ("vllm" if installed else "transformers")
        assert chosen_engine(RolloutConfig(), on_gpu=False) == "transformers"
        assert chosen_engine(RolloutConfig(engine="vllm"), on_gpu=False) == "vllm"
        for changed in (RolloutConfig(temperature=0.7), RolloutConfig(top_k=20), RolloutConfig(gold_gains=True)):
            assert chosen_engine(changed, on_gpu=True) == "transformers"
