"""The simulated cluster of `bench scale`: the real loop around stand-ins that answer as the real ones do."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import ray

from experiments.benchmarks.scale import line_through
from experiments.benchmarks.simulated_cluster import (
    LEARNED_TURNS_PER_S,
    QUESTIONS_PER_WORKER,
    ROLLED_OUT_PER_S,
    WORKERS_PER_NODE,
    RandomRewards,
    SimulatedCluster,
    SimulatedLoop,
    SleepingRanks,
    expected_seconds,
    scored_at_random,
)
from experiments.benchmarks.simulated_workers import KINDS, SIBLINGS, Sleepers, made_up_trajectory, sleepers
from learner.ranks.learner_rank import LearnerRank
from rewards.actor import RewardActor
from rollout.records import Question
from rollout.rollout_worker import RolloutWorker
from rollout.trajectory_summary import summary_of


@pytest.mark.parametrize(
    ("stand_in", "real", "methods", "more"),
    [
        (Sleepers, RolloutWorker, ("receive", "use_weights", "sample", "go_on"), 1),
        (RandomRewards, RewardActor, ("score_references",), 0),
        (SleepingRanks, LearnerRank, ("fetch", "update"), 1),
    ],
)
def test_stand_ins_are_called_as_the_real_ones_are(stand_in, real, methods, more):
    """A simulated worker's index comes first (`more`); otherwise as many arguments, and no more that have to be given."""
    for method in methods:
        theirs, ours = (
            [name for name in inspect.signature(getattr(kind, method)).parameters if name not in ("self", "_ray_trace_ctx")]
            for kind in (real, stand_in)
        )
        assert len(ours) - more == len(theirs), method


@pytest.mark.slow
def test_an_iteration_of_the_simulated_loop_is_accounted_for_and_its_driver_measured(ray_cluster):
    cluster = SimulatedCluster(speed=20)
    try:
        loop = SimulatedLoop(1, cluster)
        loop.iterate()
        found = loop.iterate()
        assert found.trajectories == WORKERS_PER_NODE * QUESTIONS_PER_WORKER
        assert found.phases.keys() == {"push", "rollout", "score", "learn", "metrics"}
        assert 0 < (found.read + found.written) / found.trajectories < 4000
        assert 0 < sum(cpu for _, cpu in found.phases.values()) <= found.busy <= found.seconds
        assert found.seconds >= sum(expected_seconds(20))
        assert loop.policy_version == 2
        assert {turn.turn.policy_version for turn in loop.turns} == {0}, "they are made up"
        assert len({turn.state_key for turn in loop.turns}) == sum(len(t.groups) for t in loop.trajectories), (
            "no two episodes share a state"
        )
        assert loop.workers.losses == []
    finally:
        cluster.close()


def test_two_episodes_share_no_state_and_turns_of_a_group_differ_in_reward():
    made_up = made_up_trajectory(Question("q", "what?", ("a",)))
    turns = [turn for number in range(2) for turn in scored_at_random(made_up, number, np.random.default_rng(number))]
    assert len(turns) == 2 * len(KINDS) * SIBLINGS
    assert len({turn.state_key for turn in turns}) == 2 * len(KINDS)
    assert len({turn.reward.total for turn in turns}) == len(turns)


def test_simulated_workers_and_ranks_take_as_long_as_was_measured():
    rolling, learning = expected_seconds()
    assert rolling == pytest.approx(QUESTIONS_PER_WORKER / ROLLED_OUT_PER_S)
    assert learning == pytest.approx(WORKERS_PER_NODE * QUESTIONS_PER_WORKER * 40 / (4 * LEARNED_TURNS_PER_S))


def test_the_line_through_measured_points_is_the_one_they_lie_on():
    assert line_through([1, 2, 4, 64], [0.15, 0.2, 0.3, 3.3]) == pytest.approx((0.1, 0.05))


@pytest.mark.slow
def test_made_up_trajectories_reach_the_driver_with_their_questions(ray_cluster):
    sleeper = sleepers()
    questions = [Question("q0", "0", ()), Question("q1", "0", ())]
    ray.get(sleeper.use_weights.remote(1, 0, ()), timeout=60)
    worked, arrived = ray.get(list(sleeper.sample.remote(1, questions, 0, None, 0, 1.0)), timeout=60)
    ray.kill(sleeper)
    assert [(place, summaries) for place, summaries in worked.finished] == [(i, [summary_of(t)]) for i, t in enumerate(arrived)]
    assert [trajectory.question.id for trajectory in arrived] == ["q0", "q1"]
    assert arrived[0].groups[0].state.key != arrived[1].groups[0].state.key
    assert worked.unfinished == 0
