"""The simulated cluster of `bench scale`: the real loop around stand-ins that answer as the real ones do."""

from __future__ import annotations

import inspect
import math
import os

import numpy as np
import pytest
import ray

from experiments.benchmarks.limited_links import broadcast_seconds, limited_nodes, links_can_be_limited
from experiments.benchmarks.recorded_episodes import Recorded, distinct, scored_turns
from experiments.benchmarks.scale import Point, fit, line_through, link_rows
from experiments.benchmarks.simulated_cluster import LEARNED_TURNS_PER_S, RecordedRewards, RecordedSleepers, SimulatedCluster, SleepingRanks
from experiments.benchmarks.simulated_loop import QUESTIONS_PER_WORKER, ROLLED_OUT_PER_S, WORKERS_PER_NODE, SimulatedLoop, expected_seconds
from experiments.benchmarks.simulated_workers import trajectory_of
from learner.worker import LearnerRank
from rewards.actor import RewardActor
from rollout.records import Question, ScoredTurn, TurnReward
from rollout.worker import RolloutWorker


def recorded(count: int) -> Recorded:
    """Made-up trajectories with rewards that differ within a group, so that there is something to learn."""
    random = np.random.default_rng(0)
    trajectories = tuple(trajectory_of(Question(f"r{i}", "what?", ("a",)), 0) for i in range(count))
    scored = tuple(
        tuple(
            ScoredTurn(
                group.state.key, group.state.prompt_ids, None, turn, TurnReward(float(random.random())), "e", 1.0, trajectory.question.id
            )
            for group in trajectory.groups
            for turn in group.turns
        )
        for trajectory in trajectories
    )
    return Recorded(trajectories, scored, tuple((i + 1) / count for i in range(count)))


@pytest.mark.parametrize(
    ("stand_in", "real", "methods", "more"),
    [
        (RecordedSleepers, RolloutWorker, ("receive", "use_weights", "begin", "go_on"), 1),
        (RecordedRewards, RewardActor, ("score",), 0),
        (SleepingRanks, LearnerRank, ("update",), 0),
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
    cluster = SimulatedCluster(recorded(8), speed=20)
    try:
        loop = SimulatedLoop(1, cluster)
        loop.iterate()
        found = loop.iterate()
        assert found.trajectories == WORKERS_PER_NODE * QUESTIONS_PER_WORKER
        assert found.phases.keys() == {"push", "rollout", "score", "learn", "figures"}
        assert 0 < sum(cpu for _, cpu in found.phases.values()) <= found.busy <= found.seconds
        assert found.seconds >= sum(expected_seconds(cluster.recorded, 20))
        assert loop.policy_version == 2
        assert {turn.turn.policy_version for turn in loop.turns} == {0}, "they are recorded"
        assert len({turn.state_key for turn in loop.turns}) == sum(len(t.groups) for t in loop.trajectories), (
            "no two episodes share a state"
        )
        assert loop.workers.lost == 0
    finally:
        cluster.close()


def test_the_same_recorded_turns_under_another_mark_are_not_compared_with_each_other():
    turns = list(recorded(1).scored[0])
    one, other = distinct(turns, "#1"), distinct(turns, "#2")
    assert not {turn.state_key for turn in one} & {turn.state_key for turn in other}
    assert len({turn.state_key for turn in one}) == len({turn.state_key for turn in turns})
    assert [turn.turn for turn in one] == [turn.turn for turn in turns]


def test_simulated_workers_and_ranks_take_as_long_as_was_measured():
    rolling, learning = expected_seconds(recorded(8))
    assert rolling == pytest.approx(QUESTIONS_PER_WORKER / ROLLED_OUT_PER_S)
    assert learning == pytest.approx(WORKERS_PER_NODE * QUESTIONS_PER_WORKER * 40 / (4 * LEARNED_TURNS_PER_S))


def test_the_line_through_measured_points_is_the_one_they_lie_on():
    points = [Point(nodes, 32 * nodes, 3.0, 0.1 + 0.05 * nodes, 0.01 * nodes, 1.2) for nodes in (1, 2, 4, 64)]
    line = fit(points)
    assert (line.base, line.slope) == pytest.approx((0.1, 0.05))
    assert line.nodes_at(line.at(20)) == pytest.approx(20)
    assert line_through([1, 2], [1.0, 2.0]).at(3) == pytest.approx(3)


@pytest.mark.skipif(not links_can_be_limited(), reason="limited links need root, ip and tc")
def test_a_broadcast_arrives_over_limited_links_and_no_faster_than_they_allow():
    size = 2**20
    try:
        with limited_nodes(3, 100) as nodes:
            together, one_by_one = broadcast_seconds(nodes, size)
    except RuntimeError as error:
        pytest.skip(f"no network namespaces here: {error}")
    once = (size - 128 * 1024) * 8 / 100e6  # the first 128 KiB are the links' bursts
    assert together >= 2 * once
    assert one_by_one >= 2 * once
    assert not [name for name in (os.listdir("/var/run/netns") if os.path.isdir("/var/run/netns") else []) if name in nodes]


def test_where_links_cannot_be_limited_the_table_says_so(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda tool: None)
    (row,) = link_rows((1,), [])
    assert math.isnan(row.value)
    assert row.holds is None
    assert "cannot be limited" in row.name


def test_scored_turns_of_a_recorded_trajectory_are_those_of_the_step_rewards():
    turns = scored_turns(trajectory_of(Question("q", "Who?", ("x",), gold_steps=()), 3))
    assert {turn.turn.kind for turn in turns} >= {"plan", "final"}


def test_trajectories_reach_the_driver_as_they_were_recorded(ray_cluster):
    found = recorded(2)
    sleeper = ray.remote(RecordedSleepers).options(num_cpus=0).remote(found)
    questions = [Question("q0/1", "0", ()), Question("q1/0", "0", ())]
    ray.get(sleeper.use_weights.remote(1, 0, ()), timeout=60)
    worked = ray.get(sleeper.begin.remote(1, questions, 0, None, 0, 1.0), timeout=60)
    ray.kill(sleeper)
    arrived = [trajectories[0] for _, trajectories in sorted(worked.finished, key=lambda done: done[0])]
    assert [trajectory.question.id for trajectory in arrived] == ["q0/1", "q1/0"]
    assert [trajectory.groups[0].state.question.id for trajectory in arrived] == ["r1", "r0"]
    assert worked.unfinished == 0
