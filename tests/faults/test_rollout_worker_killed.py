"""A rollout worker is killed while it samples: nothing is lost but time."""

from __future__ import annotations

import copy
import os
import signal
import threading
import time
from dataclasses import replace

import pytest
import ray

from rollout.episode import derive_seed


def process_ids(algorithm) -> dict[int, int]:
    handles = algorithm.workers.handles
    return {index: ray.get(handle.apply.remote(lambda _: os.getpid()), timeout=60) for index, handle in handles.items()}


def train_and_kill(algorithm, processes: list[int]) -> dict:
    """One iteration, and these processes killed while its first chunks are being sampled."""
    algorithm.push_weights()

    def kill() -> None:
        while not algorithm.workers.sampling:
            time.sleep(0.01)
        for process in processes:
            os.kill(process, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    result = algorithm.train()
    killer.join(timeout=60)
    return result


def train_until_all_are_back(algorithm) -> None:
    deadline = time.monotonic() + 240
    while algorithm.workers.alive != {1, 2} and time.monotonic() < deadline:
        algorithm.train()
    assert algorithm.workers.alive == {1, 2}, "the worker did not come back"


def sampled(trajectories) -> list[tuple[str, list[int]]]:
    return [(t.question.id, turn.response_ids.tolist()) for t in trajectories for group in t.groups for turn in group.turns]


def test_the_iteration_is_complete_and_the_same_as_if_nothing_had_happened(algorithm):
    algorithm.push_weights()
    ahead = copy.deepcopy(algorithm.data).next(6)
    expected = sampled(algorithm.roll_out(ahead, seed=derive_seed(algorithm.config.sampling_seed, algorithm.policy_version)))

    before, lost = process_ids(algorithm), len(algorithm.workers.losses)
    requeued = algorithm.workers.requeued_chunks
    result = train_and_kill(algorithm, [before[1]])
    assert result["rollout"]["trajectories"] == 6
    assert result["rollout"]["lost_workers"] == lost + 1
    assert result["rollout"]["requeued_chunks"] == requeued + 1
    assert result["learner"]["turns"] == 6 * 4
    assert sampled(algorithm.trajectories) == expected

    train_until_all_are_back(algorithm)
    after = process_ids(algorithm)
    assert after[1] != before[1]
    assert after[2] == before[2]


@pytest.mark.slow
def test_when_all_workers_die_the_iteration_waits_until_ray_has_restarted_one(algorithm):
    lost = len(algorithm.workers.losses)
    result = train_and_kill(algorithm, list(process_ids(algorithm).values()))
    assert result["rollout"]["trajectories"] == 6
    assert result["rollout"]["lost_workers"] == lost + 2
    assert {turn.turn.policy_version for turn in algorithm.turns} == {algorithm.policy_version - 1}


@pytest.mark.slow
def test_one_step_off_a_killed_worker_costs_time_but_no_question(algorithm):
    algorithm.push_weights()
    train_until_all_are_back(algorithm)
    before = algorithm.config
    learner = replace(before.learner, sampler_correction="truncate")
    algorithm.config = before.copy(copy_frozen=False).training(learner=learner, overlap=1)
    algorithm.learner_group.build(learner)
    algorithm.workers.version = -1
    position, lost, learned = algorithm.data.position, len(algorithm.workers.losses), []
    try:
        for iteration in range(4):
            result = train_and_kill(algorithm, [process_ids(algorithm)[1]]) if iteration == 1 else algorithm.train()
            figures = result["rollout"]
            assert figures["asked_questions"] == figures["returned_questions"] == 6
            assert figures["staleness_max"] == (iteration > 0)
            learned += [trajectory.question.id for trajectory in algorithm.trajectories]
        assert len(algorithm.workers.losses) == lost + 1
        # Whatever was drawn was learned from once, but for the batch that is ahead.
        assert algorithm.data.position - position == len(learned) + len(algorithm.ahead.fetch_trajectories(60)) == 5 * 6
    finally:
        algorithm.questions.settle(algorithm.ahead.asked if algorithm.ahead else [])
        algorithm.ahead, algorithm.config = None, before
        algorithm.learner_group.build(before.learner)
        algorithm.workers.version = -1
