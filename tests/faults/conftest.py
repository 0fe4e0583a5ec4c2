"""The small training loop of the learner's tests."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).parents[1] / room) for room in ("learner", "rollout")]


@pytest.fixture(scope="session")
def algorithm(ray_cluster):
    from tiny_training import shared_algorithm
    from tiny_turns import save_tiny_policy

    return shared_algorithm(save_tiny_policy())
