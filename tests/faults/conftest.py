"""The small training loop of the learner's tests."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def algorithm(ray_cluster):
    from tiny_training import shared_algorithm
    from tiny_turns import save_tiny_policy

    return shared_algorithm(save_tiny_policy())
