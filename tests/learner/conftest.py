"""A very small policy of the real class, and what it might have sampled."""

from __future__ import annotations

import pytest
from tiny_turns import group, picture

from experiments.tiny_policy import tiny_policy, train_tokenizer
from rollout.policy import Policy
from rollout.records import ScoredTurn

TEXTS = ["Which knowledge base holds the capital of Kor-mu ?", "The flag shows red and blue stripes .", "1 2 3 4 5 6 7 8 9 0"]


@pytest.fixture(scope="session")
def policy_path(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("policy")
    tokenizer = train_tokenizer(TEXTS * 3, vocabulary=320)
    tiny_policy(tokenizer, hidden=64, layers=2, heads=2, vision_hidden=32, vision_layers=2).save(folder)
    return str(folder)


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
