"""One episode, step by step, as a coroutine: plan -> search -> answer -> ... -> final.

`episode` reads like the method of the paper and knows nothing of batches: it yields what it needs next (`Sample` a turn, `Look` something up)
and is sent the result. `EpisodePool` (episode_pool.py) keeps many episodes alive and serves whatever they ask for side by side.
"""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from retrieval_actors.records import Passage, Query
from rollout.config import RolloutConfig
from rollout.engines.base import Engine, Request, Response, Sampling, generate
from rollout.gold_belief import gold_probabilities
from rollout.message import Message
from rollout.needs import askable_needs, asks_for
from rollout.policy import Policy
from rollout.prompts import PROMPT_SETS, parse_answer, parse_plan
from rollout.records import UNKNOWN, Action, Exchange, GoldStep, Image, Question, State, Step, Trajectory, Turn, TurnGroup, TurnKind
from rollout.searches import Look


class PolicyEngine(Engine, Protocol):
    policy: Policy


class Card(Protocol):
    """What an episode has to know of a knowledge base."""

    name: str
    retriever_name: str
    description: str
    modality: str


@dataclass(frozen=True)
class RecordedTurn:
    """One turn of a recorded trajectory (`offline` mode): its prompt with everything pasted in, and its gold."""

    question: Question
    kind: TurnKind
    system: str
    user: str
    target: GoldStep
    """Plan turns: gold query and knowledge base (`` or `None` to stop). Answer and final turns: the gold answer."""
    image: Image | None = None


@dataclass(frozen=True)
class Sample:
    """Siblings of this state, please."""

    state: State


Episode = Generator[Sample | Look, Any, Trajectory]


class QuestionError(ValueError):
    """A question that cannot be asked: it fails, the others go on."""


class PromptTooLongError(QuestionError):
    """Its prompt does not fit."""


@dataclass
class Log:
    """What has happened so far in one episode."""

    steps: list[Step] = field(default_factory=list)
    """Complete ones."""
    plan: Turn | None = None
    """The last plan turn of the trunk."""
    action: Action | None = None
    """What it decided; None: it was malformed."""
    groups: list[TurnGroup] = field(default_factory=list)
    history: tuple[Exchange, ...] = ()
    search_errors: int = 0
    started: float = field(default_factory=time.perf_counter)

    def trajectory(self, question: Question, final: Turn | None, answer: str, error: str = "") -> Trajectory:
        seconds = time.perf_counter() - self.started
        return Trajectory(question, tuple(self.steps), final, answer, tuple(self.groups), seconds, self.search_errors, error)

    def broken_off(self, question: Question, error: str) -> Trajectory:
        """All that was sampled, without a final turn."""
        return self.trajectory(question, None, "", error)


@dataclass(frozen=True)
class Surroundings:
    """What all episodes of a batch share: the policy's encoder, the knowledge bases, the settings."""

    policy: Policy
    cards: Mapping[str, Any]
    """Knowledge base name -> `Card`."""
    config: RolloutConfig

    @property
    def retrievers(self) -> dict[str, str]:
        """Retriever name, as the policy writes it -> knowledge base."""
        return {card.retriever_name: name for name, card in self.cards.items()}

    @property
    def descriptions(self) -> str:
        return "\n".join(f"- {card.retriever_name}: {card.description}" for card in self.cards.values())

    def state(self, kind: TurnKind, message: Message, question: Question, history: tuple[Exchange, ...] = (), **more: Any) -> State:
        image = question.image if message.image else None
        try:
            prompt_ids = self.policy.encode(message, image)
        except ValueError as error:  # its picture does not decode
            raise QuestionError(f"question {question.id}: {error}") from error
        if len(prompt_ids) > self.config.max_prompt_tokens:
            raise PromptTooLongError(
                f"question {question.id}: its {kind} prompt has {len(prompt_ids)} tokens, more than rollout.max_prompt_tokens="
                f"{self.config.max_prompt_tokens}; raise it, or lower rollout.passages or rollout.max_passage_chars"
            )
        return State(kind, prompt_ids, image, question, history, **more)


def episode(question: Question, around: Surroundings, rng: random.Random, log: Log) -> Episode:
    """Answer one question. Yields `Sample` (is sent the siblings) and `Look` (is sent the passages); returns the trajectory.

    `log` is filled on the way. Raises `QuestionError`.
    """
    while len(log.history) < around.config.max_steps:
        log.action = _route((yield from plan(question, around, rng, log)), question, log.history, around, rng)
        if log.action is None or log.action.kb is None:
            log.steps.append(Step(log.plan, log.action))
            break
        found = yield Look(log.action.kb, Query(log.action.query, question.image.data if question.image else None))
        yield from answer(log.action, found, question, around, rng, log)
    return (yield from conclude(question, around, rng, log))


def plan(question: Question, around: Surroundings, rng: random.Random, log: Log) -> Generator[Sample, Any, Action | None]:
    """The first half of a step: what to ask for, and where; None when the turn is malformed."""
    message = PROMPT_SETS[around.config.prompts].plan(question.text, question.image is not None, log.history, around.descriptions)
    group = yield Sample(around.state("plan", message, question, log.history))
    group, action = _go_on(group, rng, lambda text: parse_plan(text, around.retrievers))
    log.groups.append(group)
    log.plan, log.action = group.chosen, action
    return action


def conclude(question: Question, around: Surroundings, rng: random.Random, log: Log) -> Episode:
    """The final turn, from the sub-questions and sub-answers so far."""
    message = PROMPT_SETS[around.config.prompts].final(question.text, question.image is not None, log.history)
    group = yield Sample(around.state("final", message, question, log.history))
    group, said = _go_on(group, rng, parse_answer)
    log.groups.append(group)
    return log.trajectory(question, group.chosen, said or "")


def answer(
    action: Action,
    found: list[Passage],
    question: Question,
    around: Surroundings,
    rng: random.Random,
    log: Log,
    kbs: Sequence[str] = (),
) -> Generator[Sample, Any, None]:
    """The second half of a step: read the passages, remember the sub-answer. `kbs`: where they come from, if not from `action.kb` alone."""
    config, kb = around.config, action.kb or ""
    passages = _shown(found, config, rng)
    prompts = PROMPT_SETS[config.prompts]
    looking = prompts.pictures_in_answers or any("image" in around.cards[name].modality for name in kbs or (kb,))
    looks = question.image is not None and looking
    message = prompts.answer(action.query, passages, looks, config.max_passage_chars)
    state = around.state("answer", message, question, log.history, query=action.query, kb=kb, passages=passages)
    group = yield Sample(state)
    group, said = _go_on(group, rng, parse_answer)
    exchange = Exchange(action.query, kb, said or UNKNOWN)
    if config.gold_gains and question.answers:
        group = replace(group, gains=_gains(group, exchange, question, around, log))
    log.groups.append(group)
    log.steps.append(Step(log.plan, action, passages, group.chosen, exchange))
    log.history += (exchange,)
    log.search_errors += any(passage.error for passage in passages)


def _gains(group: TurnGroup, exchange: Exchange, question: Question, around: Surroundings, log: Log) -> tuple[float, ...]:
    """By how much each sibling's sub-answer raises the probability of the gold answer in the final turn; equal sub-answers raise it alike."""
    prompts, pictured = PROMPT_SETS[around.config.prompts], question.image is not None
    said = [parse_answer(turn.text) or UNKNOWN for turn in group.turns]
    distinct = list(dict.fromkeys(said))
    known = [log.history, *((*log.history, replace(exchange, answer=answer)) for answer in distinct)]
    messages = [prompts.final(question.text, pictured, history) for history in known]
    before, *after = gold_probabilities(around.policy, messages, question.image, question.answers)
    return tuple(after[distinct.index(answer)] - before for answer in said)


def read_at_once(kbs: Sequence[str], question: Question, around: Surroundings, rng: random.Random, log: Log) -> Episode:
    """No decisions: search these knowledge bases with the question itself, answer once from all that they bring."""
    everything: list[Passage] = []
    for kb in kbs:
        log.action = Action(question.text, kb)
        found = yield Look(kb, Query(question.text, question.image.data if question.image else None))
        everything += found
        log.steps.append(Step(None, log.action, tuple(found), None, Exchange(question.text, kb, "")))
    log.search_errors = sum(bool(passage.error) for passage in everything)
    passages = _shown(everything, around.config, rng)
    message = PROMPT_SETS[around.config.prompts].answer(
        question.text, passages, question.image is not None, around.config.max_passage_chars
    )
    group = yield Sample(around.state("answer", message, question, passages=passages))
    group, said = _go_on(group, rng, parse_answer)
    log.groups.append(group)
    return log.trajectory(question, group.chosen, said or "")


def _go_on(group: TurnGroup, rng: random.Random, parse: Callable[[str], Any]) -> tuple[TurnGroup, Any]:
    """Draw the trunk from the well-formed siblings (from all, when none is), and what it says."""
    parsed = [parse(turn.text) for turn in group.turns]
    well_formed = [i for i, said in enumerate(parsed) if said is not None]
    trunk = rng.choice(well_formed or range(len(parsed)))
    return replace(group, trunk=trunk), parsed[trunk]


def _route(
    action: Action | None, question: Question, history: tuple[Exchange, ...], around: Surroundings, rng: random.Random
) -> Action | None:
    """Who names the knowledge base: the policy; for comparison, chance, or the gold steps.

    Those also end an episode that needs nothing more; one that the policy ends too early stays ended. Without gold steps the policy decides.
    """
    if action is None or around.config.routing == "policy":
        return action
    if around.config.routing == "random":
        return action if action.kb is None else replace(action, kb=rng.choice(sorted(around.cards)))
    if around.config.routing == "oracle":
        if question.gold_steps is None:
            return action
        needs = askable_needs(question.gold_steps, history)
        if not needs:
            return Action("", None)
        need = next((need for need in needs if asks_for(action.query, need)), needs[0])
        return action if action.kb is None else replace(action, kb=need.kb)
    raise ValueError(f"rollout.routing={around.config.routing!r}: expected policy, random or oracle")


def _shown(found: Sequence[Passage], config: RolloutConfig, rng: random.Random) -> tuple[Passage, ...]:
    passages = list(found)
    if config.shuffle_passages:
        rng.shuffle(passages)
    return tuple(passages)


def roll_out_recorded(recorded: Sequence[RecordedTurn], engine: PolicyEngine, config: RolloutConfig, seed: int) -> list[Trajectory]:
    """`offline` mode: one group of siblings for every recorded turn; prompts longer than `max_prompt_tokens` are left out."""
    return [trajectory for trajectory in sample_recorded(recorded, engine, config, seed) if trajectory is not None]


def sample_recorded(recorded: Sequence[RecordedTurn], engine: PolicyEngine, config: RolloutConfig, seed: int) -> list[Trajectory | None]:
    """The same, in the order of the recorded turns, with None for those that are left out."""
    states: dict[int, State] = {}
    for i, turn in enumerate(recorded):
        prompt_ids = engine.policy.encode(Message(turn.system, turn.user, turn.image is not None, image_last=True), turn.image)
        if len(prompt_ids) <= config.max_prompt_tokens:
            states[i] = State(turn.kind, prompt_ids, turn.image, turn.question, target=turn.target)
    seeds = [stream(seed, state.key, 0) for state in states.values()]
    groups = dict(zip(states, sample_turns(list(states.values()), engine, config, config.group_size, seeds), strict=True))
    return [Trajectory(groups[i].state.question, (), None, "", (groups[i],)) if i in groups else None for i in range(len(recorded))]


def sample_turns(
    states: Sequence[State], engine: PolicyEngine, config: RolloutConfig, siblings: int, seeds: Sequence[int]
) -> list[TurnGroup]:
    """`siblings` turns from each state, in one batch."""
    requests = [
        Request(state.prompt_ids, state.image, siblings, seed, sampling_of(config, state.kind))
        for state, seed in zip(states, seeds, strict=True)
    ]
    return [
        TurnGroup(state, tuple(turn_of(state, response, engine.policy) for response in group))
        for state, group in zip(states, generate(engine, requests), strict=True)
    ]


def sampling_of(config: RolloutConfig, kind: TurnKind) -> Sampling:
    """How a turn of this kind is sampled."""
    return Sampling(config.temperature, config.top_p, config.top_k, config.longest(kind))


def turn_of(state: State, response: Response, policy: Policy) -> Turn:
    text = policy.decode(response.ids)
    return Turn(state.kind, response.ids, response.logprobs, response.finish_reason, response.policy_version, text)


def stream(*parts: int | str) -> int:
    """A seed made of names and numbers: (seed, question, episode) -> 63 bits."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "big") >> 1
