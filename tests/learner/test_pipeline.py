"""One step off, with real workers and a real learner: it learns, it is one version behind, and every question is accounted for."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from tiny_training import shared_algorithm

from learner.config import LearnerConfig
from learner.config_checks import check_overlap
from learner.experience import Experience
from learner.pipeline import one_step_off


@pytest.fixture
def overlapped(ray_cluster, policy_path):
    """The algorithm that all tests share, one step off for the time of a test."""
    algorithm = shared_algorithm(policy_path)
    before = algorithm.config
    learner = replace(before.learner, sampler_cap=2.0)
    algorithm.config = before.copy(copy_frozen=False).training(learner=learner, overlap=1)
    algorithm.learner_group.build(learner)
    algorithm.workers.version = -1
    algorithm.questions.set_state({"source": {**algorithm.data.get_state(), "position": 0}, "again": [], "asked_again": 0})
    yield algorithm
    algorithm.questions.settle(algorithm.ahead.asked if algorithm.ahead else [])
    algorithm.ahead, algorithm.config = None, before
    algorithm.learner_group.build(before.learner)
    algorithm.workers.version = -1


def learned_questions(algorithm):
    return [trajectory.question.id for trajectory in algorithm.trajectories]


def test_one_step_off_learns_is_never_more_than_one_version_behind_and_accounts_for_every_question(overlapped):
    found = [overlapped.train() for _ in range(40)]
    assert overlapped.policy_version == 40
    rollout = [result["rollout"] for result in found]
    assert [figures["staleness_max"] for figures in rollout] == [0.0] + [1.0] * 39
    assert [figures["staleness"] for figures in rollout] == [0.0] + [1.0] * 39
    for figures in rollout:
        parts = (figures["returned_questions"], figures["requeued_questions"], figures["failed_questions"])
        assert figures["asked_questions"] == sum(parts) == 6
    earned = [result["reward"]["final"] for result in found]
    assert np.mean(earned[-15:]) > np.mean(earned[:5]) + 0.05
    # The turns are weighed for having been sampled one version before: exactly 1 where nothing has changed since.
    assert found[0]["learner"]["correction"] == pytest.approx(1.0, abs=1e-3)
    assert found[0]["learner"]["mismatch_max"] < 1e-3 < found[-1]["learner"]["mismatch_max"]
    assert set(found[0]["seconds"]) == {"push", "rollout", "score", "learn"}


def test_what_was_on_its_way_at_a_checkpoint_is_asked_again_and_nothing_is_learned_twice(overlapped, tmp_path):
    overlapped.train()
    first = learned_questions(overlapped)
    overlapped.save_to_path(tmp_path / "checkpoint")
    ahead = [trajectory.question.id for trajectory in overlapped.ahead.trajectories]
    asked_again = overlapped.questions.asked_again
    overlapped.train()
    overlapped.train()
    version, position = overlapped.policy_version, overlapped.data.position
    overlapped.restore_from_path(tmp_path / "checkpoint")
    assert overlapped.ahead is None
    assert overlapped.questions.asked_again == asked_again + 6
    result = overlapped.train()
    assert learned_questions(overlapped) == ahead != first
    assert result["rollout"]["staleness_max"] == 0  # nothing was ahead
    overlapped.train()
    assert (overlapped.policy_version, overlapped.data.position) == (version, position)
    assert max(Counter(first + ahead).values()) <= 2  # ten questions, of which an epoch takes each once


def test_it_has_to_be_corrected_for():
    with pytest.raises(ValueError, match=r"train.overlap is 1 with learner.sampler_cap=0.* expected learner.sampler_cap of at least 1"):
        check_overlap(1, LearnerConfig())
    with pytest.raises(ValueError, match=r"train.overlap is 2; it must be 0"):
        check_overlap(2, LearnerConfig(sampler_cap=2))
    check_overlap(1, LearnerConfig(sampler_cap=2))
    check_overlap(0, LearnerConfig())


def test_both_halves_go_on_side_by_side_and_a_fault_in_either_is_raised():
    import threading

    met = threading.Barrier(2, timeout=10)

    def gather(version):
        if version == 3:
            met.wait()
        return Experience(dropped=[("q", "too long")] * version)

    def learn(experience):
        met.wait()
        return {"learned": len(experience.dropped)}

    ahead = Experience(dropped=[("q", "too long")] * 2)
    experience, gathered, learned = one_step_off(ahead, 2, gather, learn)
    assert experience is ahead
    assert [len(part.dropped) for part in gathered] == [3]
    assert learned == {"learned": 2}

    def fails(experience):
        raise FloatingPointError("no number")

    with pytest.raises(FloatingPointError, match="no number"):
        one_step_off(ahead, 1, lambda version: Experience(), fails)
