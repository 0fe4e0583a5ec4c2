"""`r1-router cold-start [key=value ...]`: train the tiny policy from scratch to where reinforcement learning starts.

Supervised learning on the teacher's turns over an endless stream of fresh training worlds, on the turns of a step data set (`recorded`), or, for
a policy that can read already, on the teacher's turns on the training questions of a run (`data`). A relay (`data=relay.yaml`) has a teacher of
its own, for a fresh policy or, which takes a fraction of the time, for one that can read already.

    r1-router cold-start out=runs/cold_start minutes=60
    r1-router cold-start data=relay.yaml start=experiments/worlds/cold_start_policy out=runs/relay_cold_start minutes=14
    r1-router cold-start data=pretrained.yaml start=policies/smollm2-135m out=runs/warm muon=false lr=3e-4
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice

from experiments.command_line.entry_point import command
from experiments.command_line.terminal import Console
from experiments.config import RunConfigError, TrainConfig, find_policy, load_config
from experiments.config.policy_files import check_policy_files
from experiments.config.reading import read_settings
from experiments.datasets import ensure_knowledge_bases, load_dataset
from experiments.datasets.relay import relay_sources, relay_world
from experiments.worlds.cold_start_training import ColdStartConfig, train
from experiments.worlds.natural_teacher import natural_demonstrations, natural_manner
from experiments.worlds.relay import query_for
from experiments.worlds.relay_teacher import RelayTeacher
from experiments.worlds.teacher import (
    FIRST_ATLAS,
    Demonstration,
    answer_response,
    demonstrations,
    lifelike_demonstrations,
    plan_response,
    teacher_texts,
)
from experiments.worlds.teacher_search import KnowledgeBases
from retrieval_actors.folder_lock import hold
from rewards.actor import RETRIEVERS
from rollout.needs import right_kbs
from rollout.records import Question, RecordedTurn
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
        response = plan_response("", turn.target.query, names[turn.target.kbs[0]] if turn.target.kbs else STOP)
    else:
        response = answer_response("", turn.target.answer)
    return Demonstration(turn.kind, turn.message, turn.image, response)


def taught(config: ColdStartConfig, console: Console) -> Iterator[Demonstration]:
    """An endless stream: the teacher's turns on the training questions of the run's configuration, over its knowledge bases, which are built if
    missing, with its prompts and passages. All that it will ask is searched before the first turn. Raises RunConfigError."""
    run = load_config([config.data])
    dataset = load_dataset(run.data, run.evaluation, run.retrieval.folders)
    questions = [question for question in dataset.train if isinstance(question, Question) and question.gold_steps]
    needs = [(need, question) for question in questions for need in question.gold_steps or ()]
    if not needs:
        raise RunConfigError(f"data={config.data}: data.name={run.data.name} has no training questions with gold steps")
    if unknown := set(right_kbs(need for need, _ in needs)) - {source.name for source in dataset.training_kbs}:
        raise RunConfigError(f"data={config.data}: gold steps name {', '.join(sorted(unknown))}; set retrieval.folders for it")
    with console.status("knowledge bases") as status:
        folders = ensure_knowledge_bases(dataset.training_kbs, lambda what, done, total: status.update(f"{what} {done}/{total}"))
        bases = KnowledgeBases(folders)
        status.update(f"searching for the needs of {len(questions)} training questions")
        bases.prepare([(need.query, question) for need, question in needs], run.rollout.passages)
    manner = natural_manner(run.rollout, bases.cards)
    return natural_demonstrations(questions, bases.search, manner, config.seed, config.blind)


def relay_teacher(run: TrainConfig, console: Console) -> RelayTeacher:
    """In a world of its own with the numbers of the run; its knowledge bases are built if missing. Raises RunConfigError."""
    data = replace(run.data, seed=FIRST_ATLAS)
    world = relay_world("train", data)
    questions = world.questions(data.train_questions)
    with console.status("knowledge bases") as status:
        sources = relay_sources("teacher", data, world)
        bases = KnowledgeBases(ensure_knowledge_bases(sources, lambda what, done, total: status.update(f"{what} {done}/{total}")))
        bases.prepare([(query_for(*fact), questions[0]) for fact in world.facts], run.rollout.passages)
    return RelayTeacher(world, questions, bases.search, bases.cards, run.rollout)


@command
def main(arguments: list[str]) -> int:
    console = Console()
    config = read_settings(ColdStartConfig, arguments)
    if config.start:
        config.start = find_policy(config.start, "start")
    hold(config.out)
    run = load_config([config.data]) if config.data else None
    if run and run.data.name == "relay":
        teacher = relay_teacher(run, console)
        texts = (turn.message.system + turn.message.user + turn.response for turn in islice(teacher.demonstrations(config.seed), 6000))
        train(config, teacher.demonstrations(config.seed + 1), texts, console)
    elif run:
        if not config.start:
            raise RunConfigError(f"data={config.data} without start; expected the folder of a policy that can read, or no data")
        check_policy_files(config.start, run.rollout)
        train(config, taught(config, console), (), console)
    elif config.recorded:
        recorded = training_turns(config.recorded)
        texts = (turn.system + turn.user + demonstration(turn).response for turn in recorded)  # most of a prompt is its system message
        train(config, recorded_demonstrations(recorded, config.seed), texts, console)
    else:
        shown = lifelike_demonstrations if config.lifelike else demonstrations
        train(config, shown(config.seed + 1, blind=config.blind), teacher_texts(config.seed), console)
    console.print(f"policy: {config.out}  (train.policy={config.out} starts reinforcement learning from it)")
    return 0
