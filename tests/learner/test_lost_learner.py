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


def process_ids(group: LearnerGroup) -> list[int]:
    return ray.get([rank.__ray_call__.remote(lambda self: os.getpid()) for rank in group.ranks], timeout=60)


@pytest.mark.timeout(240)
def test_a_killed_rank_is_named_though_its_peer_fails_first_and_a_restart_goes_on_bit_for_bit(two, policy, tmp_path):
    turns = [turn for seed in range(3) for turn in siblings(policy, seed)]
    two.build(replace(CONFIG, num_learners=2))
    two.update(turns)
    two.save(tmp_path / "good")
    two.update(turns)
    expected = weights_of(two).checksum
    os.kill(process_ids(two)[1], signal.SIGKILL)
    with pytest.raises(LearnerLostError, match=r"learner rank 1 lost during the update from policy version 2: ") as lost:
        two.update(turns)
    assert lost.value.ranks == (1,)
    two.restart()
    assert two.policy_version == 0
    two.load(tmp_path / "good")
    two.update(turns)
    assert weights_of(two).checksum == expected


@pytest.mark.slow
def test_a_rank_that_hangs_is_lost_after_the_deadline_and_named(two, policy):
    turns = [turn for seed in range(3) for turn in siblings(policy, seed)]
    two.restart()
    stopped = process_ids(two)[1]
    before, two.config = two.config, replace(two.config, deadline_s=5)
    os.kill(stopped, signal.SIGSTOP)
    try:
        with pytest.raises(LearnerLostError, match=r"learner ranks? .*1 lost during the update from policy version 0: no answer in 5 s"):
            two.update(turns)
    finally:
        two.config = before
        os.kill(stopped, signal.SIGKILL)
    two.restart()
    two.update(turns)
    assert two.policy_version == 1
