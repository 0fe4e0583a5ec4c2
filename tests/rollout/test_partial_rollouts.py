"""Partial rollouts: responses in flight keep their tokens across updates, and every token is that of the version which it names."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from scripted import Library
from test_worker import hand_over

from experiments.worlds.teacher import demonstrations
from learner.question_ledger import ShuffledQuestions
from learner.step_grpo import StepGRPO
from rollout.config import RolloutConfig
from rollout.engines.base import Request, Sampling
from rollout.engines.key_value_cache import bucket_length
from rollout.engines.transformers_engine import TransformersEngine
from rollout.policies import load_policy
from rollout.records import Question, Turn
from rollout.rollout_worker import RolloutWorker
from tests.rollout.test_engine import plain_logprobs

SAMPLINGS = (Sampling(max_new_tokens=40), Sampling(0.7, 0.9, 20, 35), Sampling(0.0, max_new_tokens=30), Sampling(1.3, max_new_tokens=50))


@pytest.fixture(scope="module")
def folder(fresh_policy, tmp_path_factory):
    path = tmp_path_factory.mktemp("policy")
    fresh_policy.save(path)
    return path


@pytest.fixture(scope="module")
def requests(fresh_policy) -> list[Request]:
    """With pictures and without, groups of one to eleven, four samplings."""
    turns = list(itertools.islice(demonstrations(23), 120))
    pairs = zip([turn for turn in turns if turn.image][:4], [turn for turn in turns if not turn.image][:4], strict=True)
    turns, sizes = [turn for pair in pairs for turn in pair], itertools.cycle((8, 3, 1, 11, 5))
    return [
        Request(fresh_policy.encode(turn.message, turn.image), turn.image, next(sizes), seed, SAMPLINGS[seed % 4])
        for seed, turn in enumerate(turns)
    ]


@pytest.fixture(scope="module")
def weights(fresh_policy):
    """Of versions 0 to 3. The first are those that an engine starts with."""
    noise = torch.Generator().manual_seed(0)
    first = {name: tensor.detach().clone() for name, tensor in fresh_policy.model.named_parameters()}
    return [{name: tensor + 0.03 * v * torch.randn(tensor.shape, generator=noise) for name, tensor in first.items()} for v in range(4)]


def begin(folder, weights, partial=True, **limits):
    engine = TransformersEngine(load_policy(folder), partial=partial, **limits)
    engine.update_weights(0, weights[0])
    return engine


def run(engine, requests, weights=(), after=()):
    """Responses by (number of the request, sibling). Version v replaces the weights after `after[v - 1]` further calls of `collect`."""
    tickets = {engine.submit(request): number for number, request in enumerate(requests)}
    found = {}
    for version, calls in enumerate(after, 1):
        for _ in range(calls):
            found |= {(tickets[done.ticket], done.sibling): done for done in engine.collect()}
        engine.update_weights(version, weights[version])
    while engine.unfinished:
        found |= {(tickets[done.ticket], done.sibling): done for done in engine.collect()}
    return found


@pytest.fixture(scope="module")
def in_one_go(folder, weights, requests):
    return run(begin(folder, weights, partial=False), requests)


@pytest.mark.parametrize("limits", [{"slots": 256}, {"slots": 20, "batch_tokens": 2500}])
def test_each_token_has_the_log_prob_of_the_version_that_it_names(folder, weights, requests, limits):
    engine = begin(folder, weights, **limits)
    found = run(engine, requests, weights, after=(2, 1, 1))
    assert len(found) == sum(request.siblings for request in requests)
    assert max(len(response.earlier) for response in found.values()) >= 2
    spanning = {key: response for key, response in found.items() if response.earlier}
    assert {requests[number].image is None for number, _ in spanning} == {True, False}
    plain = load_policy(folder)
    for version in range(4):
        plain.model.load_state_dict(weights[version], strict=False)
        for (number, _), response in spanning.items():
            versions = Turn("plan", response.ids, response.logprobs, "stop", response.policy_version, "", earlier=response.earlier).versions
            assert sum(tokens for _, tokens in versions) == len(response.ids) == len(response.logprobs)
            assert [v for v, _ in versions] == sorted({v for v, _ in versions})
            of_token = np.repeat([v for v, _ in versions], [tokens for _, tokens in versions])
            expected = plain_logprobs(plain, requests[number], response)
            np.testing.assert_allclose(response.logprobs[of_token == version], expected[of_token == version], atol=2e-4)


@pytest.mark.parametrize(("slots", "after"), [(3, (0, 2, 1)), (16, (1, 0)), (40, (1, 1, 1))])
def test_an_update_to_the_same_weights_changes_no_token_wherever_it_falls(folder, weights, requests, in_one_go, slots, after):
    found = run(begin(folder, weights, slots=slots), requests[:4], [weights[0]] * 4, after)
    assert found.keys() == {key for key in in_one_go if key[0] < 4}
    for key, response in found.items():
        assert response.ids.tolist() == in_one_go[key].ids.tolist()
        assert response.finish_reason == in_one_go[key].finish_reason
        np.testing.assert_allclose(response.logprobs, in_one_go[key].logprobs, atol=1e-4)
        assert (response.allowed is None) == (in_one_go[key].allowed is None)
        if response.allowed:
            assert response.allowed.sizes.tolist() == in_one_go[key].allowed.sizes.tolist()


def test_without_an_update_partial_rollouts_change_no_bit_and_without_partial_rollouts_nothing_is_kept(
    folder, weights, requests, in_one_go
):
    for key, response in run(begin(folder, weights), requests).items():
        assert response.ids.tolist() == in_one_go[key].ids.tolist()
        assert response.logprobs.tobytes() == in_one_go[key].logprobs.tobytes()
        assert response.earlier == ()
    again = run(begin(folder, weights, partial=False), requests[:4], weights, after=(1,))
    begun_again = run(begin(folder, [weights[1]], partial=False), requests[:4])
    assert any(response.policy_version == 1 for response in again.values())
    for key, response in again.items():
        expected = begun_again[key] if response.policy_version else in_one_go[key]
        assert response.earlier == ()
        assert response.ids.tolist() == expected.ids.tolist()
        assert response.logprobs.tobytes() == expected.logprobs.tobytes()


def test_what_was_kept_can_be_aborted_and_is_kept_after_an_exception(folder, weights, requests):
    engine = begin(folder, weights, slots=30)
    tickets = [engine.submit(request) for request in requests[4:8]]
    engine.collect()
    engine.update_weights(1, weights[1])
    engine.abort(tickets[:1])
    hook = engine.policy.model.lm_head.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        engine.collect()
    hook.remove()
    found = []
    while engine.unfinished:
        found += engine.collect()
    assert {response.ticket for response in found} == set(tickets[1:])
    assert any(response.earlier for response in found)


def test_a_prompt_that_would_not_fit_with_its_response_is_refused_at_once(folder, weights, requests):
    long = replace(requests[1], sampling=Sampling(max_new_tokens=112))
    enough = bucket_length(len(long.prompt_ids)) + 8 * 112
    assert begin(folder, weights, partial=False, batch_tokens=enough).submit(long)
    with pytest.raises(ValueError, match=f"more than rollout.batch_tokens={enough}; raise it"):
        begin(folder, weights, batch_tokens=enough).submit(long)


def worker_of(folder, **settings):
    config = StepGRPO.get_default_config().training(
        policy_path=str(folder),
        rollout=RolloutConfig(group_size=2, max_new_tokens=40, enough=0.5, **settings),
        retriever=Library(),
        data=ShuffledQuestions([1]),
        reward_actors=[1],
    )
    return RolloutWorker(config=config, worker_index=1)


@pytest.mark.parametrize("mode", ["branch", "chain"])
def test_a_worker_goes_on_with_its_episodes_under_new_weights_and_every_turn_says_who_sampled_it(folder, fresh_policy, mode):
    worker = worker_of(folder, partial=True, mode=mode)
    hand_over(worker, fresh_policy, 4)
    asked = [Question(f"q{i}", f"Which city has flag {i} ?", (f"city {i}",)) for i in range(4)]
    report, found = worker.sample(asked, 4, None, 9, seconds=1e-4)
    finished = list(found)
    version = 4
    while report.unfinished and version < 60:
        version += 1
        hand_over(worker, fresh_policy, version)
        report, found = worker.go_on(version, 1e-4)
        finished += found
    assert not report.unfinished
    assert version > 5
    assert sorted(trajectory.question.id for trajectory in finished) == sorted([q.id for q in asked] * (2 if mode == "chain" else 1))
    turns = [turn for trajectory in finished for group in trajectory.groups for turn in group.turns]
    assert any(turn.earlier for turn in turns)
    for turn in turns:
        assert all(tokens > 0 for _, tokens in turn.versions)
        assert sum(tokens for _, tokens in turn.versions) == len(turn.response_ids)
    worker.sample(asked[:1], version, None, 9)
    assert worker.engine.unfinished == 0
