"""The policy that commands of a test start from."""

from __future__ import annotations

import pytest

from experiments.config import RunConfigError, TrainConfig, find_policy


@pytest.fixture(scope="session")
def start_policy(tmp_path_factory) -> str:
    """The shipped policy; where it is missing, one that has learned nothing."""
    try:
        return find_policy(TrainConfig().train.policy)
    except RunConfigError:
        from experiments.tiny_policy import tiny_policy, train_tokenizer

        folder = tmp_path_factory.mktemp("policy")
        tokenizer = train_tokenizer(["Which is the capital of Kor-mu ?"] * 3, vocabulary=320)
        tiny_policy(tokenizer, hidden=64, layers=2, heads=2, vision_hidden=32, vision_layers=2).save(folder)
        return str(folder)
