"""A rollout worker dies, or hangs, while it is being sent weights: it is named, and the others go on."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace

import pytest
import ray
from test_rollout_worker_killed import process_ids

from rollout.rollout_worker import WrongPolicyVersion


@pytest.fixture
def many_buckets(algorithm):
    """The learner of the algorithm, sending its weights in pieces so small that there are many."""
    learner = algorithm.learner_group
    learner.build(replace(algorithm.config.learner, bucket_bytes=40_000))
    algorithm.workers.version = -1
    yield learner
    learner.build(algorithm.config.learner)
    algorithm.workers.version = -1


def pushed_with(algorithm, learner, at: int, signal_number: int, process: int, deadline_s: float) -> None:
    """A push during which this process is sent a signal, when it has taken the buckets before `at` (from 0) and none after."""

    def buckets():
        for number, bucket in enumerate(learner.publish()):
            if number == at:
                ray.get(list(algorithm.workers.transfer.calls[1].values()), timeout=60)
                os.kill(process, signal_number)
            yield bucket

    for worker in (1, 2):
        algorithm.workers.transfer.forget(worker)  # or those would be skipped that are as they were
    algorithm.workers.push(learner.policy_version, buckets(), deadline_s)


def taken_in_again(algorithm, deadline_s: float = 240) -> bool:
    end = time.monotonic() + deadline_s
    while algorithm.workers.alive != {1, 2} and time.monotonic() < end:
        algorithm.roll_out(algorithm.data.next(2), seed=0)
        time.sleep(0.2)
    return algorithm.workers.alive == {1, 2}


def test_the_dead_receiver_is_named_with_node_and_bucket_and_the_others_hold_the_new_version(algorithm, many_buckets):
    before, losses = process_ids(algorithm), len(algorithm.workers.losses)
    began = time.monotonic()
    pushed_with(algorithm, many_buckets, 2, signal.SIGKILL, before[1], deadline_s=60)
    assert time.monotonic() - began < 30
    assert algorithm.workers.alive == {2}
    (lost,) = algorithm.workers.losses[losses:]
    of = len(algorithm.workers.transfer.buckets)
    assert of > 3
    assert (lost.worker, lost.node, lost.bucket) == (1, ray.util.get_node_ip_address(), 3)
    assert f"rollout worker 1 on node {lost.node} was lost while taking bucket 3 of {of} of policy version 0" in str(lost)
    assert ray.get(algorithm.workers.handles[2].sample.remote([], many_buckets.policy_version)[1], timeout=60) == []

    found = algorithm.roll_out(algorithm.data.next(8), seed=0)
    assert {turn.policy_version for t in found for turn in t.groups[0].turns} == {many_buckets.policy_version}
    assert taken_in_again(algorithm), "the worker did not come back"
    assert process_ids(algorithm)[1] != before[1]
    assert algorithm.train()["rollout"]["lost_in_transfer"] >= 1


@pytest.mark.slow
def test_a_receiver_that_hangs_is_restarted_after_the_deadline_and_the_others_go_on(algorithm, many_buckets):
    before, losses = process_ids(algorithm), len(algorithm.workers.losses)
    pushed_with(algorithm, many_buckets, 2, signal.SIGSTOP, before[1], deadline_s=5)
    assert algorithm.workers.alive == {2}
    (lost,) = algorithm.workers.losses[losses:]
    assert (lost.worker, lost.bucket) == (1, 3)
    assert "no answer in 5 s" in lost.reason
    assert taken_in_again(algorithm), "the worker did not come back"


def test_buckets_that_did_not_change_are_not_sent_again_and_a_worker_that_lost_them_gets_them(algorithm, many_buckets):
    algorithm.push_weights()
    taken_in_again(algorithm)
    transfer = algorithm.workers.transfer
    first = list(transfer.buckets)
    algorithm.workers.push(7, many_buckets.publish())
    assert transfer.calls == {}
    assert [bucket.ref for bucket in transfer.buckets] == [bucket.ref for bucket in first]
    assert ray.get(algorithm.workers.handles[1].sample.remote([], 7)[1], timeout=60) == []
    with pytest.raises(WrongPolicyVersion):
        ray.get(algorithm.workers.handles[1].sample.remote([], 6)[1], timeout=60)
