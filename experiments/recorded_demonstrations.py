"""The turns of a published step data set as demonstrations: what a fresh tiny policy needs before it can learn from their rewards."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from experiments.config import RunConfigError, load_config
from experiments.datasets import load_dataset
from experiments.demonstration import Demonstration
from experiments.teacher import answer_response, plan_response
from rewards.actor import RETRIEVERS
from rollout.episode import RecordedTurn
from rollout.message import Message
from rollout.prompts import STOP


def training_turns(configuration: str) -> list[RecordedTurn]:
    """Those with a gold that a run of this configuration would learn from: what it holds out stays unseen.

    Raises RunConfigError for another data set.
    """
    config = load_config([configuration])
    found = load_dataset(config.data, config.evaluation, config.retrieval.folders).train
    turns = [turn for turn in found if isinstance(turn, RecordedTurn) and (turn.kind == "plan" or turn.target.answer)]
    if not turns:
        raise RunConfigError(f"recorded={configuration}: data.name={config.data.name} holds no recorded turns; expected a step data set")
    return turns


def recorded_demonstrations(turns: Sequence[RecordedTurn], seed: int = 0) -> Iterator[Demonstration]:
    """Over and over, in an order of its own each time."""
    order, rng = list(turns), random.Random(seed)
    while True:
        rng.shuffle(order)
        yield from map(demonstration, order)


def demonstration(turn: RecordedTurn) -> Demonstration:
    """The gold of the turn in its format. The data set tells no thoughts, so there are none."""
    if turn.kind == "plan":
        names = {kb: name for name, kb in RETRIEVERS.items()}
        response = plan_response("", turn.target.query, names.get(turn.target.kb, STOP))
    else:
        response = answer_response("", turn.target.answer)
    return Demonstration(turn.kind, Message(turn.system, turn.user, turn.image is not None), turn.image, response)
