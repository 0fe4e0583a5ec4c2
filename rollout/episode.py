"""One episode as a coroutine: plan -> search -> answer -> ... -> final. It yields a request (for siblings of a state, or for passages) and is sent
the result; `EpisodePool` (episode_pool.py) runs many at the same time."""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from retrieval_actors.records import Passage, Query
from rollout.config import RolloutConfig
from rollout.information_gain import information_gains, passage_support
from rollout.prompts import find_prompts
from rollout.records import UNKNOWN, Action, Exchange, Message, Question, State, Step, Trajectory, Turn, TurnGroup, TurnKind
from rollout.route_names import with_routes
from rollout.searches import SearchRequest
from rollout.turn_parser import is_unknown, parse_answer, parse_plan

if TYPE_CHECKING:
    from rollout.policies import Policy  # see rollout/nan_check.py

Requests = Generator["State | SearchRequest | Branches", Any, Any]
Episode = Generator["State | SearchRequest | Branches", Any, Trajectory]
"""Yields a state, and is sent the `TurnGroup` of its siblings; a request, and is sent a list of passages; or branches, and is sent what each
returned, None for one that failed."""


class Branch(NamedTuple):
    """An episode, or part of one, on the way to something else: its turns are not learned from."""

    state: EpisodeState
    seed: int
    run: Callable[[EpisodeState], Requests]


class Branches(NamedTuple):
    """To be run side by side."""

    branches: Sequence[Branch]


class QuestionError(ValueError):
    """The picture of a question does not decode, or a prompt is too long. Only this question fails."""


@dataclass
class EpisodeState:
    """One episode so far: complete steps, the last plan turn of the trunk and its action (None: malformed)."""

    question: Question
    policy: Policy
    cards: Mapping[str, Any]  # knowledge base name -> `KnowledgeBaseCard`
    config: RolloutConfig
    rng: random.Random
    steps: list[Step] = field(default_factory=list)
    plan: Turn | None = None
    action: Action | None = None
    groups: list[TurnGroup] = field(default_factory=list)
    history: tuple[Exchange, ...] = ()
    search_errors: int = 0
    started: float = field(default_factory=time.perf_counter)
    ends: list[float] = field(default_factory=list)  # as in `Trajectory`
    read: dict[tuple[str, str], str | None] = field(default_factory=dict)  # (query, knowledge base) -> sub-answer: for route_values.py
    valued: dict[Any, float | None] = field(default_factory=dict)  # what it has measured so far

    @property
    def retrievers(self) -> dict[str, str]:
        """Retriever name, as the policy writes it -> knowledge base."""
        return {card.retriever_name: name for name, card in self.cards.items()}

    @property
    def prompts(self) -> Any:
        """`PromptSet`, or `RecordedPrompts`."""
        return find_prompts(self.config.prompts)

    @property
    def pictured(self) -> bool:
        return self.question.image is not None

    def final_message(self, history: Sequence[Exchange]) -> Message:
        return self.prompts.final(self.question.text, self.pictured, history)

    def search(self, kb: str, text: str) -> SearchRequest:
        return SearchRequest(kb, Query(text, self.question.image.data if self.question.image else None), self.question.fault)

    def in_prompt_order(self, found: Sequence[Passage]) -> tuple[Passage, ...]:
        passages = list(found)
        if self.config.shuffle_passages:
            self.rng.shuffle(passages)
        return tuple(passages)

    def turn_state(self, kind: TurnKind, message: Message, **answer_turn: Any) -> State:
        question, config = self.question, self.config
        image = question.image if message.image else None
        try:
            prompt_ids = self.policy.encode(message, image)
        except ValueError as error:  # its picture does not decode
            raise QuestionError(f"question {question.id}: {error}") from error
        if len(prompt_ids) > config.max_prompt_tokens:
            limit = f"more than rollout.max_prompt_tokens={config.max_prompt_tokens}"
            advice = "raise it, or lower rollout.passages or rollout.max_passage_chars"
            raise QuestionError(f"question {question.id}: its {kind} prompt has {len(prompt_ids)} tokens, {limit}; {advice}")
        return State(kind, prompt_ids, image, question, self.history, **answer_turn)

    def trajectory(self, final: Turn | None = None, answer: str = "", error: str = "") -> Trajectory:
        """All turns so far; `final` is None if the episode failed."""
        turns = tuple(self.steps), final, answer, tuple(self.groups)
        return Trajectory(self.question, *turns, self.seconds, self.search_errors, error, tuple(self.ends))

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.started


def episode(
    ep: EpisodeState,
    route: Callable[[EpisodeState, Action], Action] | None = None,
    look: Callable[[EpisodeState, Action | None], Generator[Branches, Any, Action | None]] | None = None,
) -> Episode:
    """Answers one question; returns the trajectory and fills `ep` on the way. `route` may change the policy's actions, and so may `look`, which may
    run branches first. Raises `QuestionError`."""
    while len(ep.history) < ep.config.max_steps:
        action = yield from plan(ep)
        if look is not None:
            action = yield from look(ep, action)
        if action is not None and route is not None:
            ep.action = action = route(ep, action)
        if action is None or action.kb is None:
            ep.steps.append(Step(ep.plan, action))
            break
        found = yield ep.search(action.kb, action.query)
        yield from answer(ep, action, found)
    return (yield from conclude(ep))


def plan(ep: EpisodeState) -> Generator[State, Any, Action | None]:
    """The first half of a step: what to search for, and where; None when the turn is malformed."""
    descriptions = "\n".join(f"- {card.retriever_name}: {card.description}" for card in ep.cards.values())
    group = yield ep.turn_state("plan", ep.prompts.plan(ep.question.text, ep.pictured, ep.history, descriptions))
    if ep.config.record_routes:
        group = replace(group, turns=with_routes(group.turns, ep.policy, ep.retrievers))
    group, action = choose_trunk(group, ep.rng, lambda text: parse_plan(text, ep.retrievers))
    ep.groups.append(group)
    ep.plan, ep.action = group.chosen, action
    return action


def answer(ep: EpisodeState, action: Action, found: list[Passage], kbs: Sequence[str] = ()) -> Generator[State, Any, None]:
    """The second half of a step: read the passages, keep the sub-answer. `kbs`: where the passages come from, if not from `action.kb` alone."""
    config, kb = ep.config, action.kb or ""
    passages = ep.in_prompt_order(found)
    reads_pictures = ep.prompts.pictures_in_answers or any("image" in ep.cards[name].modality for name in kbs or (kb,))

    def message(shown: Sequence[Passage]) -> Message:
        return ep.prompts.answer(action.query, shown, ep.pictured and reads_pictures, config.max_passage_chars)

    state = ep.turn_state("answer", message(passages), query=action.query, kb=kb, passages=passages)
    group, sub_answer = choose_trunk((yield state), ep.rng, parse_answer)
    failed = any(passage.error for passage in passages)
    exchange = Exchange(action.query, kb, sub_answer or UNKNOWN, failed)
    if config.gold_gains and ep.question.answers and not state.after_failure:
        sub_answers = [parse_answer(turn.text) or UNKNOWN for turn in group.turns]
        after = [(each, ep.final_message((*ep.history, replace(exchange, answer=each)))) for each in sub_answers]
        before = ep.final_message(ep.history)
        group = replace(group, gains=information_gains(ep.policy, before, after, ep.question.image, ep.question.answers))
    support: tuple[float, ...] = ()
    if config.support and not failed and not is_unknown(exchange.answer):
        left_out = [message(passages[:i] + passages[i + 1 :]) for i in range(len(passages))]
        support = passage_support(ep.policy, group.chosen, message(passages), left_out, ep.question.image)
    ep.groups.append(group)
    ep.steps.append(Step(ep.plan, action, passages, group.chosen, exchange, support))
    ep.history += (exchange,)
    ep.search_errors += failed


def conclude(ep: EpisodeState, state: State | None = None) -> Episode:
    """The final turn: from the sub-questions and sub-answers so far, or from `state`."""
    group, parsed = choose_trunk((yield state or ep.turn_state("final", ep.final_message(ep.history))), ep.rng, parse_answer)
    ep.groups.append(group)
    return ep.trajectory(group.chosen, parsed or "")


def choose_trunk(group: TurnGroup, rng: random.Random, parse: Callable[[str], Any]) -> tuple[TurnGroup, Any]:
    """Draw the sibling that the episode continues from, among the well-formed ones (if there are none, among all); returns its parsed text, too."""
    parsed = [parse(turn.text) for turn in group.turns]
    well_formed = [i for i, found in enumerate(parsed) if found is not None]
    trunk = rng.choice(well_formed or range(len(parsed)))
    return replace(group, trunk=trunk), parsed[trunk]


def derive_seed(*parts: int | str) -> int:
    """A seed of 63 bits, hashed from the parts, for example (seed, question, episode)."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "big") >> 1
