"""Weights by one broadcast (gloo here, NCCL between GPUs), and what happens when a receiver dies during it."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace

import pytest
import ray
from test_receiver_killed import taken_in_again
from test_rollout_worker_killed import process_ids, train_until_all_are_back

from learner.weight_transfer import WeightBroadcast


@pytest.fixture
def collective(algorithm):
    """The algorithm, as with `learner.transport=collective`."""
    algorithm.learner_group.build(replace(algorithm.config.learner, bucket_bytes=40_000))
    algorithm.workers.version = -1
    algorithm.push_weights()
    assert taken_in_again(algorithm)
    algorithm._broadcast = WeightBroadcast(algorithm.learner_group.senders, deadline_s=60)
    yield algorithm
    algorithm._broadcast = None
    algorithm.learner_group.build(algorithm.config.learner)
    algorithm.workers.version = -1


@pytest.mark.slow
def test_a_broadcast_brings_all_workers_the_weights_of_the_learner(collective):
    for _ in range(3):
        result = collective.train()
        assert collective.workers.alive == {1, 2}
        assert result["learner"]["mismatch_max"] < 5e-4
        assert {turn.turn.policy_version for turn in collective.turns} == {collective.policy_version - 1}
    sent = collective.workers.transfer
    assert len(sent.buckets) > 3
    assert {bucket.ref for bucket in sent.buckets} == {None}, "something went through the object store"
    assert sent.calls == {}


@pytest.mark.slow
def test_when_a_receiver_dies_during_the_broadcast_the_others_get_the_weights_through_the_object_store(collective):
    collective.train()
    before, losses, seen = process_ids(collective), len(collective.workers.losses), []

    class Killing(WeightBroadcast):
        def send(self, transfer):
            def until_the_third(worker, number, bucket):
                seen.append(number)
                if number == 2:
                    os.kill(before[1], signal.SIGKILL)
                return False

            transfer.holds = until_the_third
            try:
                return super().send(transfer)
            finally:
                del transfer.holds

    collective._broadcast = Killing(collective.learner_group.senders, deadline_s=30)
    began = time.monotonic()
    collective.push_weights()
    assert time.monotonic() - began < 25
    assert 2 in seen
    assert collective.workers.alive == {2}
    (lost,) = collective.workers.losses[losses:]
    assert (lost.worker, lost.node, lost.bucket) == (1, ray.util.get_node_ip_address(), 3)
    assert all(bucket.ref is not None for bucket in collective.workers.transfer.buckets)
    assert taken_in_again(collective), "the worker did not come back"
    collective._broadcast = WeightBroadcast(collective.learner_group.senders, deadline_s=60)
    collective.train()
    collective.train()
    assert {bucket.ref for bucket in collective.workers.transfer.buckets} == {None}, "the restarted worker is not in the new group"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("broadcasts", "noticed"),
    [(1, True), (1, False), (0, False)],
    ids=["a death that was noticed", "a death between two broadcasts", "a death before the first broadcast"],
)
def test_after_a_restart_the_group_meets_anew_and_no_broadcast_fails(collective, caplog, broadcasts, noticed):
    for _ in range(broadcasts + 1):  # the workers held the weights of the first one already
        collective.train()
    before = process_ids(collective)
    os.kill(before[1], signal.SIGKILL)
    if noticed:
        collective.roll_out(collective.data.next(2), seed=0)
        train_until_all_are_back(collective)  # it gets its weights through the object store
    while process_ids_or_none(collective).get(1) in (None, before[1]):
        time.sleep(0.1)
    collective.learner_group.update(collective.turns)
    caplog.clear()
    began = time.monotonic()
    collective.push_weights()
    assert time.monotonic() - began < 8
    assert not [record for record in caplog.records if "failed" in record.message]
    assert {bucket.ref for bucket in collective.workers.transfer.buckets} == {None}, "something went through the object store"
    assert collective.workers.alive == {1, 2}


def process_ids_or_none(collective) -> dict[int, int]:
    """Empty while a worker is being restarted."""
    try:
        return process_ids(collective)
    except ray.exceptions.RayError:
        return {}
