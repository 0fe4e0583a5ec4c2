"""The policy that commands of a test start from, and stores of MLflow."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from experiments.config import RunConfigError, TrainConfig, find_policy


@pytest.fixture(scope="session")
def start_policy(tmp_path_factory) -> str:
    """The shipped policy; where it is missing, one that has learned nothing."""
    try:
        return find_policy(TrainConfig().train.policy)
    except RunConfigError:
        from experiments.worlds.tiny_policy import tiny_policy, train_tokenizer

        folder = tmp_path_factory.mktemp("policy")
        tokenizer = train_tokenizer(["Which is the capital of Kor-mu ?"] * 3, vocabulary=320)
        tiny_policy(tokenizer, hidden=64, layers=2, heads=2, vision_hidden=32, vision_layers=2).save(folder)
        return str(folder)


@pytest.fixture(scope="session")
def new_store(tmp_path_factory) -> Callable[[Path], str]:
    """A function that puts an empty data base of MLflow into a folder; its URI. Making the first one takes seconds, the others are copies."""
    from mlflow import MlflowClient

    empty = tmp_path_factory.mktemp("empty") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{empty}").search_experiments()

    def make(folder: Path) -> str:
        shutil.copy(empty, folder / "mlflow.db")
        return f"sqlite:///{folder}/mlflow.db"

    return make
