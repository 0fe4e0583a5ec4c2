"""Learners are killed while a checkpoint is being written: the one before is whole, and going on from it changes nothing."""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import ray
from tiny_training import offline_config
from tiny_turns import group as siblings
from tiny_turns import save_tiny_policy, weights_of

from learner.config import LearnerConfig
from learner.learner_group import LearnerGroup
from rollout.policies import load_policy


def write_and_never_finish(learner: LearnerGroup, folder: Path) -> None:
    """Begin to write a checkpoint that stays half-written: its last file is a pipe that nobody reads."""
    folder.mkdir()
    os.mkfifo(folder / "random_0.pt")
    learner.write(folder)
    end = time.monotonic() + 60
    while not list(folder.glob("engine/*model_states.pt")):
        assert time.monotonic() < end
        time.sleep(0.02)
    assert not learner.written()


def kill(learner: LearnerGroup) -> None:
    processes = ray.get([rank.__ray_call__.remote(lambda self: os.getpid()) for rank in learner.ranks], timeout=60)
    for process in processes:
        os.kill(process, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.timeout(150)
def test_the_checkpoint_before_is_whole_and_the_half_written_one_is_refused(ray_cluster, tmp_path):
    policy_path = save_tiny_policy()
    policy = load_policy(policy_path)
    turns = [turn for seed in range(3) for turn in siblings(policy, seed)]
    config = LearnerConfig(lr=1e-3, cpus_per_learner=0.2, deadline_s=250)
    first = LearnerGroup(config, policy_path)
    first.update(turns)
    first.save(tmp_path / "good")
    first.snapshot()
    write_and_never_finish(first, tmp_path / "half")
    first.update(turns)  # learning goes on meanwhile
    expected = weights_of(first).checksum
    kill(first)
    second = LearnerGroup(config, policy_path)
    with pytest.raises(FileNotFoundError, match="no complete learner checkpoint"):
        second.load(tmp_path / "half")
    second.load(tmp_path / "good")
    second.update(turns)
    assert weights_of(second).checksum == expected
    second.shutdown()


@pytest.mark.slow
def test_two_iterations_and_two_after_a_kill_equal_four_bit_for_bit_with_two_ranks_and_partitioned_gradients(ray_cluster, tmp_path):
    def algorithm():
        config = offline_config(save_tiny_policy())
        return config.training(learner=replace(config.learner, num_learners=2, zero_stage=2, cpus_per_learner=0.1)).build_algo()

    def two_more(algorithm) -> list[tuple]:
        seen = []
        for _ in range(2):
            algorithm.train()
            seen.append([(turn.episode, turn.turn.response_ids.tolist(), turn.turn.logprobs.tolist()) for turn in algorithm.turns])
        return seen

    first = algorithm()
    two_more(first)
    first.save_to_path(tmp_path / "good")
    expected, position, checksum = two_more(first), first.data.position, weights_of(first.learner_group).checksum
    first.learner_group.snapshot()
    write_and_never_finish(first.learner_group, tmp_path / "half")
    kill(first.learner_group)
    first.stop()

    second = algorithm()
    second.restore_from_path(tmp_path / "good")
    assert two_more(second) == expected
    assert (second.data.position, second.policy_version) == (position, 4)
    assert weights_of(second.learner_group).checksum == checksum
    files = json.loads((tmp_path / "good/learner_group/learner.json").read_text())["files"]
    assert {"random_0.pt", "random_1.pt"} < files.keys()
    second.stop()
