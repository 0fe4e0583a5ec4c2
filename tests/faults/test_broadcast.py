"""Weights by one broadcast (gloo here, NCCL between GPUs), and what happens when a receiver dies during it."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace

import pytest
import ray
from test_receiver_killed import taken_in_again
from test_rollout_worker_killed import process_ids

from learner.weight_broadcast import WeightBroadcast


@pytest.fixture
def collective(algorithm):
    """The algorithm, as with `learner.transport=collective`."""
    algorithm.learner_group.build(replace(algorithm.config.learner, bucket_bytes=40_000))
    algorithm.workers.version = -1
    algorithm.push_weights()
    assert taken_in_again(algorithm)
    algorithm._broadcast = WeightBroadcast(algorithm.learner_group.ranks, deadline_s=60)
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
        def send(self, workers, holds):
            def until_the_third(number, bucket):
                seen.append(number)
                if number == 2:
                    os.kill(before[1], signal.SIGKILL)
                return False

            return super().send(workers, until_the_third)

    collective._broadcast = Killing(collective.learner_group.ranks, deadline_s=30)
    began = time.monotonic()
    collective.push_weights()
    assert time.monotonic() - began < 25
    assert 2 in seen
    assert collective.workers.alive == {2}
    (lost,) = collective.workers.losses[losses:]
    assert (lost.worker, lost.node, lost.bucket) == (1, ray.util.get_node_ip_address(), 3)
    assert all(bucket.ref is not None for bucket in collective.workers.transfer.buckets)
    assert taken_in_again(collective), "the worker did not come back"
    collective._broadcast = WeightBroadcast(collective.learner_group.ranks, deadline_s=60)
    collective.train()
    collective.train()
    assert {bucket.ref for bucket in collective.workers.transfer.buckets} == {None}, "the restarted worker is not in the new group"
