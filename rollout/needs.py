"""Which needs of an episode are still open, judged by what the policy can see.

A need (gold step) is met when it was asked for (need_matcher.py) and something other than `unknown` came back, right or wrong: the policy cannot
see which answers are wrong. It is also met when its answer came back to another query. After a wrong answer the later needs are rewritten with it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from retrieval_actors.records import Passage
from rollout.need_matcher import NeedMatcher, entities, mentions, need_matcher
from rollout.records import Exchange, GoldStep, Question, Trajectory
from rollout.turn_parser import is_unknown, normalise

ASKED = 0.5  # probability from which a query counts as asking for a need
DONE, NOT_DONE = 0.75, 0.25  # of all needs being met: from DONE on, stopping is right; up to NOT_DONE, asking; between: not judged
_BY_ACCIDENT = re.compile(r"[^\w]*\d{0,3}[^\w]*|yes|no|true|false")  # other queries have such answers, too


@dataclass(frozen=True)
class OpenNeeds:
    remaining: list[GoldStep]  # the gold steps that are not met, rewritten with the answers so far
    done: float  # probability that all of them are met

    @property
    def judged(self) -> bool:
        """Whether `done` is clear enough to judge asking and stopping."""
        return self.done >= DONE or (self.done <= NOT_DONE and bool(self.remaining))

    def askable(self, question: str) -> list[GoldStep]:
        """The remaining needs that do not wait for an earlier one: a need waits if it names an answer that the question does not name."""
        return [
            need for i, need in enumerate(self.remaining) if not any(_waits(need, before.answer, question) for before in self.remaining[:i])
        ]


def open_needs(question: Question, history: Sequence[Exchange], matcher: NeedMatcher | None = None) -> OpenNeeds:
    """What `question` still needs after `history`; one exchange meets one need. `matcher`: default MiniLM's."""
    matcher = matcher or need_matcher()
    needs = list(question.gold_steps or ())
    answered = [exchange for exchange in history if not is_unknown(exchange.answer)]
    met = [0.0] * len(needs)
    for i, need in enumerate(needs):
        others = needs[:i] + needs[i + 1 :]
        probabilities = [matcher.probability(exchange.query, need, others) for exchange in answered]
        met[i] = max(probabilities, default=0.0)
        if met[i] < ASKED:
            continue
        exchange = answered.pop(probabilities.index(met[i]))
        if not mentions(exchange.answer, (need.answer,)):  # "Ann Lee, a director" is Ann Lee
            needs[i + 1 :] = [_rewritten(later, need.answer, exchange.answer, question) for later in needs[i + 1 :]]
    for i, need in enumerate(needs):
        if met[i] < ASKED and (found := next((e for e in answered if _answers(e, need, question, history)), None)):
            answered.remove(found)
            met[i] = 1.0
    remaining = [need for need, probability in zip(needs, met, strict=True) if probability < ASKED]
    return OpenNeeds(remaining, math.prod(met, start=1.0))


def askable_needs(question: Question, history: Sequence[Exchange], matcher: NeedMatcher | None = None) -> list[GoldStep] | None:
    """What a plan turn may ask for; empty: it should stop; None: not judged, for lack of gold steps or because the matcher is not sure."""
    if question.gold_steps is None:
        return None
    found = open_needs(question, history, matcher)
    if not found.judged:
        return None
    return [] if found.done >= DONE else found.askable(question.text)


def asked_need(query: str, gold_steps: Sequence[GoldStep], matcher: NeedMatcher | None = None) -> GoldStep | None:
    """The gold step that the query asks for, if any."""
    matcher = matcher or need_matcher()
    probabilities = [matcher.probability(query, need, [other for other in gold_steps if other is not need]) for need in gold_steps]
    best = max(probabilities, default=0.0)
    return gold_steps[probabilities.index(best)] if best >= ASKED else None


def right_kbs(needs: Iterable[GoldStep]) -> list[str]:
    """The knowledge bases that are right to search for one of these needs, each once."""
    return list(dict.fromkeys(kb for need in needs for kb in need.kbs))


def prepare(trajectories: Iterable[Trajectory], matcher: NeedMatcher) -> None:
    """Embed the queries of these episodes in one batch, before they are judged one by one."""
    judged = [(step.exchange, trajectory.question.gold_steps) for trajectory in trajectories for step in trajectory.steps]
    matcher.prepare((exchange.query, needs) for exchange, needs in judged if exchange is not None and needs)


def by_accident(answer: str) -> bool:
    """Whether it stands in many texts that are about something else."""
    return _BY_ACCIDENT.fullmatch(normalise(answer)) is not None


def holds_answer(passage: Passage, gold: GoldStep) -> bool:
    """Whether the passage, of a gold knowledge base, has the answer of the gold step and all its entities."""
    if passage.error or passage.kb not in ("", *gold.kbs):
        return False
    return mentions(f"{passage.title} {passage.text}", (gold.answer, *entities(gold))) == 1.0


def _answers(exchange: Exchange, need: GoldStep, question: Question, history: Sequence[Exchange]) -> bool:
    """Whether the exchange gave the need's answer, which no earlier text held, and which is no common word or short number."""
    answer = normalise(exchange.answer)
    if not answer or answer != normalise(need.answer) or by_accident(answer):
        return False
    earlier = history[: history.index(exchange)]
    seen = [question.text, exchange.query, *(text for e in earlier for text in (e.query, e.answer))]
    return not any(mentions(text, (exchange.answer,)) for text in seen)


def _waits(need: GoldStep, answer: str, question: str) -> bool:
    """Whether the need names this answer of an earlier one, and the question does not."""
    return bool(normalise(answer) and mentions(need.query, (answer,)) and not mentions(question, (answer,)))


def _rewritten(gold: GoldStep, old: str, new: str, question: Question) -> GoldStep:
    if not _waits(gold, old, question.text):
        return gold
    query, *names = (replaced(text, old, new) for text in (gold.query, *entities(gold)))
    return replace(gold, query=query, entities=tuple(names))


def replaced(text: str, old: str, new: str) -> str:
    """`text` with `new` wherever it has `old` as whole words, in any case."""
    return re.sub(rf"(?<![\w-]){re.escape(old)}(?![\w-])", lambda _: new, text, flags=re.IGNORECASE)
