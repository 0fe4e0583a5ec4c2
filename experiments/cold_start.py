"""`r1-router cold-start [key=value ...]`: train the tiny policy from scratch to where reinforcement learning starts.

Supervised learning on the teacher's turns over an endless stream of fresh training worlds, or on the turns of a step data set (`recorded`).

    r1-router cold-start out=runs/cold_start minutes=60
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from experiments.command_line.entry_point import command
from experiments.command_line.terminal import Console
from experiments.config import RunConfigError, load_config
from experiments.config.reading import read_settings
from experiments.datasets import load_dataset
from experiments.worlds.cold_start_training import ColdStartConfig, train
from experiments.worlds.teacher import Demonstration, answer_response, demonstrations, lifelike_demonstrations, plan_response, teacher_texts
from retrieval_actors.folder_lock import hold
from rewards.actor import RETRIEVERS
from rollout.records import RecordedTurn
from rollout.turn_parser import STOP


def training_turns(configuration: str) -> list[RecordedTurn]:
    """The recorded turns with a gold that a run of this configuration would train on. Raises RunConfigError for another data set."""
    config = load_config([configuration])
    found = load_dataset(config.data, config.evaluation, config.retrieval.folders).train
    turns = [turn for turn in found if isinstance(turn, RecordedTurn) and (turn.kind == "plan" or turn.target.answer)]
    if not turns:
        raise RunConfigError(f"recorded={configuration}: data.name={config.data.name} holds no recorded turns; expected a step data set")
    return turns


def recorded_demonstrations(turns: Sequence[RecordedTurn], seed: int = 0) -> Iterator[Demonstration]:
    """An endless stream: all turns, shuffled anew each time."""
    order, rng = list(turns), random.Random(seed)
    while True:
        rng.shuffle(order)
        yield from map(demonstration, order)


def demonstration(turn: RecordedTurn) -> Demonstration:
    """The gold of the turn in the response format, without a thought, as the data set has none."""
    if turn.kind == "plan":
        names = {kb: name for name, kb in RETRIEVERS.items()}
        response = plan_response("", turn.target.query, names.get(turn.target.kb, STOP))
    else:
        response = answer_response("", turn.target.answer)
    return Demonstration(turn.kind, turn.message, turn.image, response)


@command
def main(arguments: list[str]) -> int:
    console = Console()
    config = read_settings(ColdStartConfig, arguments)
    hold(config.out)
    if config.recorded:
        recorded = training_turns(config.recorded)
        texts = (turn.system + turn.user + demonstration(turn).response for turn in recorded)  # most of a prompt is its system message
        train(config, recorded_demonstrations(recorded, config.seed), texts, console)
    else:
        teacher = lifelike_demonstrations if config.lifelike else demonstrations
        train(config, teacher(config.seed + 1, blind=config.blind), teacher_texts(config.seed), console)
    console.print(f"policy: {config.out}  (train.policy={config.out} starts reinforcement learning from it)")
    return 0
