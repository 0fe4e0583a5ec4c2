"""The group loses a rank: it says so, and can be brought back."""

from __future__ import annotations

import os
import signal
from dataclasses import replace

import pytest
import ray
from tiny_turns import group as siblings
from tiny_turns import weights_of

from learner.config import LearnerConfig
from learner.deadline import LearnerLostError
from learner.learner_group import LearnerGroup

CONFIG = LearnerConfig(lr=1e-3, warmup_iterations=1, cpus_per_learner=0.1, deadline_s=200)


@pytest.fixture(scope="module")
def pair(ray_cluster, policy_path):
    group = LearnerGroup(replace(CONFIG, num_learners=2), policy_path)
    yield group
    group.shutdown()


def process_ids(group: LearnerGroup) -> list[int]:
    return ray.get([rank.__ray_call__.remote(lambda self: os.getpid()) for rank in group.ranks], timeout=60)


@pytest.mark.timeout(240)
def test_a_killed_rank_is_named_though_its_peer_fails_first_and_a_restart_goes_on_bit_for_bit(pair, policy, tmp_path):
    turns = [turn for seed in range(3) for turn in siblings(policy, seed)]
    pair.build(pair.config)
    pair.update(turns)
    pair.save(tmp_path / "good")
    pair.update(turns)
    expected = weights_of(pair).checksum
    os.kill(process_ids(pair)[1], signal.SIGKILL)
    with pytest.raises(LearnerLostError, match=r"learner rank 1 lost during the update from policy version 2: ") as lost:
        pair.update(turns)
    assert lost.value.ranks == (1,)
    pair.restart()
    assert pair.policy_version == 0
    pair.load(tmp_path / "good")
    pair.update(turns)
    assert weights_of(pair).checksum == expected


@pytest.mark.slow
def test_a_rank_that_hangs_is_lost_after_the_deadline_and_named(pair, policy):
    turns = [turn for seed in range(3) for turn in siblings(policy, seed)]
    pair.restart()
    stopped = process_ids(pair)[1]
    before, pair.config = pair.config, replace(pair.config, deadline_s=5)
    os.kill(stopped, signal.SIGSTOP)
    try:
        with pytest.raises(LearnerLostError, match=r"learner ranks? .*1 lost during the update from policy version 0: no answer in 5 s"):
            pair.update(turns)
    finally:
        pair.config = before
        os.kill(stopped, signal.SIGKILL)
    pair.restart()
    pair.update(turns)
    assert pair.policy_version == 1
