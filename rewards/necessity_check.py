"""Found steps: gold steps from a question and its answer alone. An episode that searched every knowledge base shows what the question needs if its
final answer is right, and wrong as soon as any one of its sub-answers had not been found (the necessity check). Pure functions: they say what the
policy has to be asked, and judge what it said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from retrieval_actors.records import Passage
from rewards.config import RewardConfig
from rewards.step_rewards import answer_reward
from rollout.config import RolloutConfig
from rollout.need_matcher import mentions
from rollout.needs import holds_answer
from rollout.prompts import find_prompts
from rollout.records import UNKNOWN, Exchange, GoldStep, Message, Question, RecordedTurn, Trajectory, TurnKind
from rollout.turn_parser import is_unknown, normalise, parse_answer

FAILED, WRONG, GUESSED, NEEDLESS, UNREAD = WHY = (
    "failed",  # the episode, or one of its searches
    "wrong answer",
    "right without a search, but not mostly",  # a lucky guess must not teach that nothing has to be looked up
    "right without one of its sub-answers",
    "a sub-answer from no knowledge base alone",  # guessed, misread, or `unknown`
)  # Why an episode shows no gold steps; a later one came further
Said = Mapping[RecordedTurn, str]  # what the policy said; a turn whose prompt was too long is missing


@dataclass(frozen=True)
class Candidate:
    """A right episode, and the turns that decide whether its exchanges are gold steps."""

    question: Question
    exchanges: tuple[Exchange, ...]
    without: tuple[RecordedTurn, ...]  # for each exchange: the final turn as it would be had this one found nothing
    readings: tuple[Mapping[str, RecordedTurn], ...]
    """For each exchange: knowledge base whose passages hold its answer -> the answer turn that reads these passages alone."""

    @property
    def asked(self) -> list[RecordedTurn]:
        """What the policy has to be asked."""
        return [*self.without, *(turn for of_exchange in self.readings for turn in of_exchange.values())]


def candidate_of(episode: Trajectory, rollout: RolloutConfig, reward: RewardConfig, cards: Mapping[str, Any]) -> Candidate | str:
    """The candidate that an episode of the method `ircot` is, or why it is none. `cards`: knowledge base -> its `KnowledgeBaseCard`."""
    question, prompts = episode.question, find_prompts(rollout.prompts)
    if not episode.whole or episode.final is None:
        return FAILED
    if not is_right(episode.final.text, question, reward):
        return WRONG
    read = [(step.exchange, step.passages) for step in episode.steps if step.answer is not None and step.exchange is not None]
    history, pictured = [exchange for exchange, _ in read], question.image is not None
    readings: list[dict[str, RecordedTurn]] = []
    for exchange, passages in read:
        holding = {passage.kb for passage in passages if _holds(passage, exchange)}
        if not holding:
            return UNREAD
        readings.append({})
        for kb in (kb for kb in cards if kb in holding):
            shown = pictured and (prompts.pictures_in_answers or "image" in cards[kb].modality)
            of_kb = [passage for passage in passages if passage.kb == kb]
            readings[-1][kb] = _turn("answer", question, prompts.answer(exchange.query, of_kb, shown, rollout.max_passage_chars))
    without = [_without(history, place, question) for place in range(len(history))]
    finals = tuple(_turn("final", question, prompts.final(question.text, pictured, exchanges)) for exchanges in without)
    return Candidate(question, tuple(history), finals, tuple(readings))


def _without(history: Sequence[Exchange], place: int, question: Question) -> list[Exchange]:
    """The exchanges as they would be had this one found nothing. Later ones whose query has its answer, and not from the question, would not have
    been asked: in a chain of hops the last answer alone gives the final one."""
    kept, lost = [*history[:place], replace(history[place], answer=UNKNOWN)], [history[place].answer]
    for later in history[place + 1 :]:
        if all(mentions(question.text, (answer,)) >= mentions(later.query, (answer,)) for answer in lost):
            kept.append(later)
        else:
            lost.append(later.answer)
    return kept


def found_steps(episodes: Sequence[Candidate | str], said: Said, reward: RewardConfig) -> tuple[GoldStep, ...] | str:
    """The gold steps of a question: those of the first of its episodes that passes the necessity check; or why none does, of the one that came
    furthest. None are needed where most episodes were right without a search."""
    found = [episode if isinstance(episode, str) else _gold_steps(episode, said, reward) for episode in episodes]
    shown = next((steps for steps in found if not isinstance(steps, str)), () if 2 * found.count(GUESSED) > len(found) else None)
    return max((why for why in found if isinstance(why, str)), key=WHY.index) if shown is None else shown


def is_right(text: str, question: Question, reward: RewardConfig) -> bool:
    """Whether a final turn has all tokens of a gold answer, and not too many others."""
    return bool(question.answers) and answer_reward(text, question.answers, reward).components.get("answer") == 1.0


def _gold_steps(candidate: Candidate, said: Said, reward: RewardConfig) -> tuple[GoldStep, ...] | str:
    if not candidate.exchanges:
        return GUESSED
    if any(turn not in said or is_right(said[turn], candidate.question, reward) for turn in candidate.without):
        return NEEDLESS
    pairs = zip(candidate.exchanges, candidate.readings, strict=True)
    steps = tuple(GoldStep(exchange.query, _routes(exchange, readings, said), exchange.answer) for exchange, readings in pairs)
    return steps if all(step.kbs for step in steps) else UNREAD


def _routes(exchange: Exchange, readings: Mapping[str, RecordedTurn], said: Said) -> list[str]:
    """The knowledge bases whose passages hold the answer, and give it when they are read alone: others hold it by accident."""
    read = {kb: parse_answer(said.get(turn, "")) or "" for kb, turn in readings.items()}
    return [kb for kb, answer in read.items() if normalise(answer) == normalise(exchange.answer)]


def _holds(passage: Passage, exchange: Exchange) -> bool:
    """As a passage of a gold step has to: the answer and all names of the query."""
    return not is_unknown(exchange.answer) and holds_answer(passage, GoldStep(exchange.query, passage.kb, exchange.answer))


def _turn(kind: TurnKind, question: Question, message: Message) -> RecordedTurn:
    image = question.image if message.image else None
    return RecordedTurn(question, kind, message.system, message.user, GoldStep("", (), ""), image, not message.image_last)
