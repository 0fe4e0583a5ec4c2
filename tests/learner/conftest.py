"""A very small policy of the real class, and what it might have sampled."""

from __future__ import annotations

import pytest
from tiny_turns import group, picture, save_tiny_policy

from learner.config import LearnerConfig
from learner.learner_group import LearnerGroup
from rollout.policies import Policy, load_policy
from rollout.records import ScoredTurn


@pytest.fixture(scope="session")
def policy_path() -> str:
    return save_tiny_policy()


@pytest.fixture(scope="session")
def policy(policy_path) -> Policy:
    return load_policy(policy_path)


@pytest.fixture(scope="session")
def one(ray_cluster, policy_path):
    """A learner group of one process; a test builds the engine that it needs."""
    group = LearnerGroup(LearnerConfig(cpus_per_learner=0.5, deadline_s=250), policy_path)
    yield group
    group.shutdown()


@pytest.fixture(scope="session")
def two(ray_cluster, policy_path):
    group = LearnerGroup(LearnerConfig(num_learners=2, cpus_per_learner=0.5, deadline_s=250), policy_path)
    yield group
    group.shutdown()


@pytest.fixture(scope="session")
def turns(policy) -> list[ScoredTurn]:
    """Seven groups of all kinds, with and without pictures, one of them without variance."""
    return [
        turn
        for seed, kind in enumerate(["plan", "answer", "final", "plan", "answer", "plan", "final"])
        for turn in group(policy, seed, 2 + seed % 4, picture(seed) if kind == "plan" else None, kind, [0.5] * 9 if seed == 4 else None)
    ]
