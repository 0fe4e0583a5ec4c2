"""A rollout worker in this process: told to stop, it is free for the next questions; with other weights it refuses."""

from __future__ import annotations

import pytest
from scripted import Library
from test_episode_pool import questions, told

from learner.question_source import ShuffledQuestions
from learner.step_grpo_config import StepGRPOConfig
from rollout.config import RolloutConfig
from rollout.weights import pack
from rollout.worker import RolloutWorker, WrongPolicyVersion


def hand_over(worker, policy, version):
    buckets = pack(policy.model.named_parameters(), version).buckets
    for number, bucket in enumerate(buckets):
        worker.receive(number, bucket)
    worker.use_weights(version, [bucket.checksum for bucket in buckets])


@pytest.fixture(scope="module")
def worker(fresh_policy, tmp_path_factory):
    folder = tmp_path_factory.mktemp("policy")
    fresh_policy.save(folder)
    config = StepGRPOConfig().training(
        policy_path=str(folder),
        rollout=RolloutConfig(group_size=2, max_new_tokens=6),
        retriever=Library(),
        data=ShuffledQuestions([1]),
        reward_actors=[1],
        trace=True,
    )
    worker = RolloutWorker(config=config, worker_index=2)
    hand_over(worker, fresh_policy, 4)
    return worker


def test_work_in_slices_is_the_work_at_once_and_what_is_given_up_leaves_no_trace(worker):
    expected = told(worker.sample(questions(4), 4, None, 9))
    begun = worker.begin(questions(6), 4, None, 9, seconds=1e-4)
    assert begun.unfinished > 0
    assert begun.report.policy_version == 4
    worked = worker.begin(questions(4), 4, None, 9, seconds=1e-4)  # the others were stragglers
    finished = list(worked.finished)
    while worked.unfinished:
        worked = worker.go_on(4, 1e-4)
        finished += worked.finished
    assert told(t for _, found in sorted(finished, key=lambda done: done[0]) for t in found) == expected
    assert worker.engine.unfinished == 0
    assert {span.name for span in worked.report.spans} <= {"prefill", "decode", "encode", "search", "idle"}


def test_a_worker_without_the_weights_or_the_questions_says_so(worker, fresh_policy):
    with pytest.raises(WrongPolicyVersion, match="worker 2 holds policy version 4, was asked for 7; send weights"):
        worker.begin(questions(1), 7)
    worker.begin(questions(3), 4, None, 9, seconds=1e-4)
    hand_over(worker, fresh_policy, 5)
    with pytest.raises(WrongPolicyVersion, match="has no questions of policy version 4"):
        worker.go_on(4, 1.0)


def test_an_episode_that_takes_too_long_is_broken_off_and_says_so(worker):
    version = worker.engine.policy_version
    (late,) = worker.sample(questions(1), version, {"episode_s": 1e-9}, 9)
    assert late.error == "question q0: no answer within its deadline"
    assert late.final is None
