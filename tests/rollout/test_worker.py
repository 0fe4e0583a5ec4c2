"""A rollout worker in this process: told to stop, it is free for the next questions; with other weights it refuses."""

from __future__ import annotations

import copy
import itertools

import pytest
from scripted import Library
from test_episode_pool import questions, told

from learner.question_ledger import ShuffledQuestions
from learner.step_grpo import StepGRPO
from rollout.config import RolloutConfig
from rollout.measurement import EvaluationWorker
from rollout.policies import Policy
from rollout.records import GoldStep, RecordedTurn
from rollout.rollout_worker import RolloutWorker, WrongPolicyVersion
from rollout.trajectory_summary import summary_of
from rollout.weight_buckets import Packer


def hand_over(worker, policy, version):
    buckets = [*Packer().buckets(policy.model.named_parameters())]
    for number, bucket in enumerate(buckets):
        worker.receive(number, bucket)
    worker.use_weights(version, [bucket.checksum for bucket in buckets])


@pytest.fixture(scope="module")
def worker(fresh_policy, tmp_path_factory):
    folder = tmp_path_factory.mktemp("policy")
    fresh_policy.save(folder)
    config = StepGRPO.get_default_config().training(
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
    expected = told(worker.sample(questions(4), 4, None, 9)[1])
    begun, _ = worker.sample(questions(6), 4, None, 9, seconds=1e-4)
    assert begun.unfinished > 0
    assert begun.policy_version == 4
    worked, trajectories = worker.sample(questions(4), 4, None, 9, seconds=1e-4)  # the others were stragglers
    finished, found = list(worked.finished), list(trajectories)
    while worked.unfinished:
        worked, trajectories = worker.go_on(4, 1e-4)
        finished += worked.finished
        found += trajectories
    assert [summaries for _, summaries in finished] == [[summary_of(trajectory)] for trajectory in found]
    assert told(found[i] for i in sorted(range(4), key=lambda i: finished[i][0])) == expected
    assert worker.engine.unfinished == 0
    assert {span.name for span in worked.spans} <= {"prefill", "decode", "encode", "search", "idle"}


def test_a_worker_without_the_weights_or_the_questions_says_so(worker, fresh_policy):
    with pytest.raises(WrongPolicyVersion, match="worker 2 holds policy version 4, was asked for 7; send weights"):
        worker.sample(questions(1), 7)
    worker.sample(questions(3), 4, None, 9, seconds=1e-4)
    hand_over(worker, fresh_policy, 5)
    with pytest.raises(WrongPolicyVersion, match="has no questions of policy version 4"):
        worker.go_on(4, 1.0)


def test_an_episode_that_takes_too_long_is_broken_off_and_says_so(worker):
    version = worker.engine.policy_version
    _, (late,) = worker.sample(questions(1), version, {"episode_s": 1e-9}, 9)
    assert late.error == "question q0: no answer within its deadline"
    assert late.final is None


def test_a_question_draws_what_its_place_in_the_whole_list_says_whoever_gets_it(worker):
    version, (first, second) = worker.engine.policy_version, questions(2)
    _, whole = worker.sample([first, second, first], version, None, 9)
    _, again = worker.sample([first], version, None, 9, repeats=[1])
    assert told(again) == told(whole[2:])
    assert told(whole[2:]) != told(whole[:1])


def test_an_exception_in_offline_mode_leaves_the_worker_reusable(worker):
    version, target = worker.engine.policy_version, GoldStep("", "", "a")
    recorded = [RecordedTurn(q, "final", "", q.text, target) for q in questions(3)]
    _, before = worker.sample(recorded, version, {"mode": "offline"}, 9)
    calls = itertools.count()

    def fail_once(*_):
        if next(calls) == 2:
            raise RuntimeError("out of memory")

    hook = worker.engine.policy.model.lm_head.register_forward_pre_hook(fail_once)
    try:
        with pytest.raises(RuntimeError, match="out of memory"):
            worker.sample(recorded, version, {"mode": "offline"}, 9)
    finally:
        hook.remove()
    assert worker.engine.unfinished == 0
    assert told(worker.sample(recorded, version, {"mode": "offline"}, 9)[1]) == told(before)


def test_a_recorded_prompt_that_stands_twice_is_answered_in_other_words(worker):
    version, (question,) = worker.engine.policy_version, questions(1)
    recorded = [RecordedTurn(question, "final", "", question.text, GoldStep("", "", answer)) for answer in "ab"]
    _, (first, second) = worker.sample(recorded, version, {"mode": "offline"}, 9)
    assert first.groups[0].state.key == second.groups[0].state.key
    assert told([first]) != told([second])


def test_a_measurement_is_that_of_a_process_of_its_own_and_the_next_rollout_needs_its_weights_again(worker, fresh_policy, tmp_path):
    changed = copy.deepcopy(fresh_policy.model)
    for parameter in changed.parameters():
        parameter.data.mul_(1.5)
    folder = tmp_path / "changed"
    Policy(changed, fresh_policy.tokenizer, fresh_policy.image_processor).save(folder)
    hand_over(worker, fresh_policy, 6)
    expected = told(worker.sample(questions(3), 6, None, 9)[1])
    config = RolloutConfig(group_size=1, max_new_tokens=6)
    worker.sample(questions(4), 6, None, 9, seconds=1e-4)  # stragglers of an iteration that is over
    measured = told(worker.measure(str(folder), questions(3), Library(), config, 5))
    apart = EvaluationWorker(str(folder), worker.config.rollout, False, "float32", 60.0)
    assert measured == told(apart.measure(str(folder), questions(3), Library(), config, 5))
    with pytest.raises(WrongPolicyVersion):
        worker.sample(questions(3), 6, None, 9)
    hand_over(worker, fresh_policy, 6)
    report, found = worker.sample(questions(3), 6, None, 9)
    assert told(found) == expected
    assert report.sampled_tokens == sum(len(turn.response_ids) for t in found for group in t.groups for turn in group.turns)
    assert told(worker.measure(str(folder), questions(3), Library(), config, 5)) == measured
