"""A very small policy of the real class, and what it might have sampled."""

from __future__ import annotations

import pytest
from hypothesis import settings
from tiny_turns import group, picture, save_tiny_policy

from rollout.policy import Policy
from rollout.records import ScoredTurn

settings.register_profile("busy machine", deadline=None)
settings.load_profile("busy machine")


@pytest.fixture(scope="session")
def policy_path() -> str:
    return save_tiny_policy()


@pytest.fixture(scope="session")
def policy(policy_path) -> Policy:
    return Policy.load(policy_path)


@pytest.fixture(scope="session")
def turns(policy) -> list[ScoredTurn]:
    """Seven groups of all kinds, with and without pictures, one of them without variance."""
    return [
        turn
        for seed, kind in enumerate(["plan", "answer", "final", "plan", "answer", "plan", "final"])
        for turn in group(policy, seed, 2 + seed % 4, picture(seed) if kind == "plan" else None, kind, [0.5] * 9 if seed == 4 else None)
    ]
