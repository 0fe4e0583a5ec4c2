"""Turns with tokens of several versions: how old they are, which are learned from, and which stragglers are waited for."""

from __future__ import annotations

import contextlib
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_training import NothingKnown, offline_config, questions

from learner import step_grpo
from learner.config import LearnerConfig, check_overlap
from learner.iteration_data import staleness
from learner.objective.advantages import questions_with_variance, turn_advantages
from learner.objective.batch_plan import credit_of
from learner.question_ledger import QuestionLedger, ShuffledQuestions
from learner.reward_calls import ScoredTurns
from learner.step_grpo import StepGRPO
from rewards.scored_summary import ScoredSummary
from rollout.config import RolloutConfig
from rollout.records import ScoredTurn, Turn, TurnReward
from rollout.timeline import Timeline

CORRECTED = LearnerConfig(sampler_correction="truncate")


def turn(*versions: tuple[int, int], reward: float = 0.0, question: str = "q") -> ScoredTurn:
    *earlier, (version, _) = versions
    tokens = sum(count for _, count in versions)
    ids, logprobs = np.zeros(tokens, np.int32), np.zeros(tokens, np.float32)
    sampled = Turn("plan", ids, logprobs, "stop", version, "", earlier=tuple(earlier))
    return ScoredTurn(question, np.array([1], np.int32), None, sampled, TurnReward(reward), question, 0.0, question)


@given(
    st.lists(st.lists(st.tuples(st.integers(0, 6), st.integers(1, 9)), min_size=1, max_size=3, unique_by=lambda run: run[0]), max_size=6)
)
def test_staleness_counts_tokens_and_every_token_once(found):
    turns = [turn(*sorted(versions)) for versions in found]
    parts = [ScoredSummary.of(turns[:2]), ScoredSummary.of(turns[2:])]
    metrics = staleness(ScoredSummary.joined(parts), replace(CORRECTED, max_staleness=3), 8)
    of_token = np.array([version for versions in found for version, count in versions for _ in range(count)])
    ages = 8 - of_token if len(of_token) else np.zeros(1)
    assert metrics["staleness"] == pytest.approx(ages.mean())
    assert metrics["staleness_max"] == ages.max()
    assert metrics["older_tokens"] == pytest.approx((ages > ages.min()).mean())
    assert metrics["too_old_turns"] == sum(8 - min(version for version, _ in versions) > 3 for versions in found)


def test_a_turn_with_a_token_that_is_too_old_is_compared_with_but_not_learned_from():
    turns = [turn((2, 3), (4, 1), reward=1.0), turn((3, 2), (4, 2), reward=0.5), turn((4, 4)), turn((2, 4), question="other", reward=1.0)]
    turns.append(turn((2, 4), question="other"))
    config = replace(CORRECTED, max_staleness=2)
    every, bounded = (turn_advantages(turns, each, version=5) for each in (CORRECTED, config))
    np.testing.assert_array_equal(every.advantages, bounded.advantages)
    assert every.kept.all()
    assert bounded.kept.tolist() == [False, True, True, False, False]
    scored = ScoredSummary.of(turns)
    credit = credit_of(scored, bounded, config)
    assert credit.packed.tolist() == bounded.kept.tolist()
    assert credit.shares.sum() == 8  # tokens: what is not learned from is not in the denominator either
    assert questions_with_variance(scored, config, 5) == {"q"}
    assert questions_with_variance(scored, config, 4) == {"q", "other"}
    assert staleness(scored, config, 5)["too_old_turns"] == len(turns) - bounded.kept.sum()


@pytest.mark.parametrize(
    ("rollout", "learner", "overlap", "message"),
    [
        ({}, LearnerConfig(), 0, "rollout.partial is true with learner.sampler_correction=none: .* has to be corrected for"),
        ({"enough": 1.0}, CORRECTED, 1, r"rollout.partial is true with rollout.enough=1: .*; expected less, such as 0.9"),
        ({"engine": "vllm"}, CORRECTED, 1, "rollout.partial is true with rollout.engine=vllm: .*; expected false, or .*transformers"),
        ({}, replace(CORRECTED, max_staleness=1), 1, r"max_staleness is 1 with rollout.partial=true; .* at least train.overlap \+ 1 = 2"),
        ({"partial": False}, replace(CORRECTED, max_staleness=3), 1, "max_staleness is 3 with rollout.partial=false; expected 0"),
    ],
)
def test_what_partial_rollouts_cannot_be_is_refused_before_anything_starts(rollout, learner, overlap, message):
    with pytest.raises(ValueError, match=message):
        check_overlap(overlap, learner, RolloutConfig(**{"partial": True, "enough": 0.9} | rollout))


def test_what_goes_together_is_accepted():
    for overlap in (0, 1):
        check_overlap(overlap, replace(CORRECTED, max_staleness=overlap + 1), RolloutConfig(partial=True, enough=0.9))
        check_overlap(overlap, LearnerConfig(surrogate="dppo"), RolloutConfig(partial=True, straggler_s=9.0))


class NoRewards:
    """For batches of which nothing is finished."""

    def __init__(self, *_: Any):
        self.asked = Counter[str]()

    def turns(self) -> ScoredTurns:
        return ScoredTurns(ScoredSummary.of([]), ())


@pytest.mark.parametrize(
    ("settings", "overlap", "moves"),
    [
        ({"max_staleness": 2, "too_old": "wait"}, 1, 1),
        ({"max_staleness": 4, "too_old": "wait"}, 1, 3),
        ({"max_staleness": 1, "too_old": "wait"}, 0, 1),
        ({"max_staleness": 4, "too_old": "drop"}, 1, 2),
        ({}, 1, 2),
    ],
)
def test_with_wait_a_straggler_is_waited_for_before_its_tokens_are_too_old(monkeypatch, settings, overlap, moves):
    monkeypatch.setattr(step_grpo, "RewardCalls", NoRewards)
    algorithm: Any = object.__new__(StepGRPO)
    algorithm.config = SimpleNamespace(
        rollout=RolloutConfig(enough=0.5, partial=True), learner=replace(CORRECTED, **settings), overlap=overlap,
        questions_per_iteration=3, sampling_seed=0, reward_actors=[], deadline_s=1,
    )  # fmt: skip
    algorithm.questions, algorithm._driver = QuestionLedger(ShuffledQuestions(questions(9))), Timeline()
    waited_for = []

    def work(batch):
        waited_for.append(list(batch.waited_for))
        return iter(())

    algorithm.workers = SimpleNamespace(chunk=2, work=work)
    for version in range(5):
        algorithm.gather(version)
    assert [bool(places) for places in waited_for] == [version >= moves for version in range(5)]


@contextlib.contextmanager
def partial_algorithm(policy_path, **settings):
    algorithm = offline_config(
        policy_path,
        rollout=RolloutConfig(routing="direct", group_size=4, max_new_tokens=250, enough=0.34, partial=True),
        learner=LearnerConfig(
            lr=3e-3, warmup_iterations=1, cpus_per_learner=0.2, deadline_s=250, sampler_correction="truncate", **settings
        ),
        retriever=NothingKnown(),
        data=ShuffledQuestions(questions(10), seed=1),
        questions_per_chunk=1,
        overlap=1,
    ).build_algo()
    try:
        yield algorithm
    finally:
        algorithm.stop()


@pytest.mark.parametrize("too_old", ["drop", "wait"])
def test_a_run_with_partial_rollouts_learns_from_mixed_responses_and_accounts_for_every_question_and_turn(
    ray_cluster, policy_path, too_old
):
    with partial_algorithm(policy_path, max_staleness=2, too_old=too_old) as algorithm:
        mixed = older = 0
        for _ in range(8):
            found = algorithm.train()
            rollout, learner, turns = found["rollout"], found["learner"], algorithm.turns
            parts = (rollout["returned_questions"], rollout["requeued_questions"], rollout["failed_questions"])
            assert rollout["asked_questions"] == sum(parts) == 6
            assert learner["turns"] == rollout["turns"] == len(turns)
            assert learner["learned_turns"] + rollout["too_old_turns"] <= len(turns)
            version = algorithm.policy_version - 1
            ages = [version - v for each in turns for v, _ in each.turn.versions]
            assert rollout["staleness_max"] == max(ages)
            assert rollout["too_old_turns"] == sum(version - each.turn.versions[0][0] > 2 for each in turns)
            if too_old == "wait":
                assert rollout["staleness_max"] <= 2
                assert rollout["too_old_turns"] == 0
            mixed += sum(bool(each.turn.earlier) for each in turns)
            older += rollout["older_tokens"] > 0
    assert older
    assert mixed
