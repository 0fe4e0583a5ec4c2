"""One step off, with real workers and a real learner: it learns, it is one version behind, and every question is accounted for."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tiny_training import shared_algorithm

from learner.config import LearnerConfig, check_overlap
from learner.deadline import RolloutsLostError
from learner.iteration_data import IterationData
from learner.question_ledger import QuestionLedger, ShuffledQuestions
from learner.step_grpo import StepGRPO
from rollout.config import RolloutConfig


@pytest.fixture
def overlapped(ray_cluster, policy_path):
    """The algorithm that all tests share, one step off for the time of a test."""
    algorithm = shared_algorithm(policy_path)
    before = algorithm.config
    learner = replace(before.learner, sampler_correction="truncate")
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
    assert [metrics["staleness_max"] for metrics in rollout] == [0.0] + [1.0] * 39
    assert [metrics["staleness"] for metrics in rollout] == [0.0] + [1.0] * 39
    for metrics in rollout:
        parts = (metrics["returned_questions"], metrics["requeued_questions"], metrics["failed_questions"])
        assert metrics["asked_questions"] == sum(parts) == 6
    earned = [result["reward"]["reward_final"] for result in found]
    assert np.mean(earned[-15:]) > np.mean(earned[:5]) + 0.05
    # The turns are weighed for having been sampled one version before: exactly 1 where nothing has changed since.
    assert found[0]["learner"]["correction"] == pytest.approx(1.0, abs=1e-3)
    mismatch = [result["learner"]["mismatch_max"] for result in found]  # almost 0 too where the update before had nothing to learn from
    assert mismatch[0] < 1e-3 < max(mismatch[-10:])
    assert set(found[0]["seconds"]) == {"push", "rollout", "score", "learn"}


def test_what_was_on_its_way_at_a_checkpoint_is_asked_again_and_nothing_is_learned_twice(overlapped, tmp_path):
    overlapped.train()
    first = learned_questions(overlapped)
    overlapped.save_to_path(tmp_path / "checkpoint")
    ahead = [trajectory.question.id for trajectory in overlapped.ahead.fetch_trajectories(60)]
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
    with pytest.raises(ValueError, match=r"train.overlap is 1 with .*sampler_correction=none.* expected .*truncate or mask, or .*dppo"):
        check_overlap(1, LearnerConfig(), RolloutConfig())
    with pytest.raises(ValueError, match=r"train.overlap is 2; it must be 0"):
        check_overlap(2, LearnerConfig(sampler_correction="mask"), RolloutConfig())
    for correction in ({"sampler_correction": "truncate"}, {"sampler_correction": "mask"}, {"surrogate": "dppo"}):
        check_overlap(1, LearnerConfig(**correction), RolloutConfig())
    check_overlap(0, LearnerConfig(), RolloutConfig())


def one_step_off(gather, learn):
    """An algorithm of which only these two halves are there, after its batch was learned from; and what that returned."""
    ledger = QuestionLedger(ShuffledQuestions(range(9)))
    algorithm: Any = object.__new__(StepGRPO)
    algorithm.learner_group, algorithm.questions, algorithm.ahead = SimpleNamespace(policy_version=3), ledger, None
    algorithm.gather = lambda version: gather(version, ledger)
    algorithm.learn = learn
    return algorithm, algorithm.learn_one_step_off(IterationData(asked=ledger.take(2)))


def test_both_halves_go_on_at_once_and_a_fault_in_either_is_raised():
    met = threading.Barrier(2, timeout=10)

    def meet(found):
        met.wait()
        return found

    algorithm, learned = one_step_off(lambda *_: meet(IterationData(dropped=[("q", "too long")])), lambda data: meet({"learned": 3.0}))
    assert algorithm.ahead.dropped == [("q", "too long")]
    assert learned == {"learned": 3.0}

    def fails(*_):
        raise FloatingPointError("no number")

    with pytest.raises(FloatingPointError, match="no number"):
        one_step_off(lambda *_: IterationData(), fails)
    with pytest.raises(FloatingPointError, match="no number"):
        one_step_off(fails, lambda data: {})


def test_a_batch_ahead_that_is_lost_is_asked_again_and_the_one_that_was_learned_from_is_not():
    def lost(version, ledger):
        ahead.extend(entry.question for entry in ledger.take(3))
        raise RolloutsLostError("lost with a node")

    ahead: list[int] = []
    algorithm, _ = one_step_off(lost, lambda data: {})
    assert algorithm.ahead is None
    assert algorithm.questions.asked_again == 3
    assert [entry.question for entry in algorithm.questions.take(3)] == ahead
