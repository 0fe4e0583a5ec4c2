"""The rewards that `reward.terms` adds up (docs/06_rollout_and_rewards.md): names of `TERMS`, or MODULE:FUNCTION, each with a weight or with
weights by kind of turn. Each is a function like `def brevity(turn: JudgedTurn) -> float | None`; None: it does not judge this turn. A user's
function is also called for malformed turns (see `turn.well_formed`)."""

import importlib
import math
import re
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from retrieval_actors.records import Passage
from rewards.step_rewards import JudgedTurn, judge_of
from rollout.nan_check import largest
from rollout.need_matcher import entities, mentions, names_in, need_matcher
from rollout.needs import ASKED, holds_answer, right_kbs
from rollout.records import GoldStep, PlanValues, TurnReward

PLAN, ANSWER, ANSWERS, ALL = ("plan",), ("answer",), ("answer", "final"), ("plan", "answer", "final")


@dataclass(frozen=True)
class Term:
    judge: Callable[[JudgedTurn], float | None]
    kinds: tuple[str, ...]  # the kinds of turn that it judges. Malformed ones earn `low`, the least that a turn can earn.
    source: str
    low: float | None = 0.0  # None: `judge` knows
    needs_chain: bool = False  # it uses the search or the outcome after a turn, which `branch` mode knows for one sibling only
    needs_values: bool = False  # it uses `rollout.values`
    of_route: bool = False  # naming the knowledge base earns it: it is credited to the tokens of the name
    needs_gold: bool = False  # it judges plan and answer turns only where gold steps are known
    name: str = ""
    weights: Mapping[str, float] = field(default_factory=dict)  # of `reward.terms`, by kind of turn

    def value(self, turn: JudgedTurn) -> float | None:
        if turn.state.kind not in self.kinds:
            return None
        value = self.judge(turn)
        return self.low if self.low is not None and value is not None and not turn.well_formed else value


def step_reward(turn: JudgedTurn) -> float | None:
    judge = judge_of(turn.state, turn.similarity, turn.config, turn.retrievers)
    return None if judge is None else judge(turn.text).total


def routing(turn: JudgedTurn) -> float | None:
    """1 for a knowledge base of a need that can be asked for, or for stopping when none is left."""
    if turn.needs is None:
        return None
    right: Sequence[str | None] = right_kbs(turn.needs) or [None]
    return float(turn.action is not None and turn.action.kb in right)


def guarded_query(turn: JudgedTurn) -> float | None:
    """For the best need: cosine with its query x F1 of the names x share of words that are no repetition (unless the gold query repeats them, too).
    0 for stopping, and for a query nearer to the whole question than to a need that the question does not ask for."""
    if not turn.needs:
        return None
    question, matcher = turn.state.question.text, need_matcher(turn.config.need_calibration)

    def guarded(query: str, need: GoldStep) -> float:
        near = turn.similarity(query, need.query)
        if matcher.probability(question, need) < ASKED and turn.similarity(query, question) > near:
            return 0.0
        asked, wanted = (Counter(re.findall(r"[\w'’-]+", text.lower())) for text in (query, need.query))
        repeats = sum(max(0, times - max(1, wanted[word])) for word, times in asked.items())
        return largest((0.0, near)) * name_f1(query, need) * (1 - repeats / max(1, asked.total()))

    if turn.action is None or turn.action.kb is None:
        return 0.0
    query = turn.action.query
    return largest(guarded(query, need) for need in turn.needs)


def name_f1(query: str, need: GoldStep) -> float:
    """F1 between the names in the query and those of the need; 1 when neither has any."""
    wanted = entities(need)
    found = sum(mentions(query, (name,)) == 1.0 for name in wanted)
    foreign = sum(mentions(" ".join([*wanted, need.query]), (name,)) == 0.0 for name in names_in(query))
    return 1.0 if not wanted and not foreign else 2 * found / (len(wanted) + found + foreign)


def new_evidence(turn: JudgedTurn) -> float | None:
    """Share of the gold steps that passages of this search answer, and passages of earlier searches did not; 0 for stopping."""
    gold_steps = turn.state.question.gold_steps
    if gold_steps is None or turn.step is None:
        return None
    new = _answered(turn.step.passages, gold_steps) - _answered(turn.seen_before(), gold_steps)
    return len(new) / max(1, len(gold_steps))


def _answered(passages: Sequence[Passage], gold_steps: Sequence[GoldStep]) -> set[int]:
    return {i for i, gold in enumerate(gold_steps) if any(holds_answer(passage, gold) for passage in passages)}


def redundancy(turn: JudgedTurn) -> float | None:
    """Minus the share of the passages that an earlier search had already found; 0 for stopping."""
    if turn.step is None:
        return None
    passages = [passage for passage in turn.step.passages if not passage.error]
    seen = {(passage.kb, passage.id) for passage in turn.seen_before()}
    return -sum((passage.kb, passage.id) in seen for passage in passages) / len(passages) if passages else 0.0


def retrieval_cost(turn: JudgedTurn) -> float:
    return -1.0 if turn.action is None or turn.action.kb is not None else 0.0


def query_value(turn: JudgedTurn) -> float | None:
    """What the best route of its query brings, over the same query answered `unknown`: so a query that gives the answer away earns nothing. For
    stopping, the value of stopping over the same. A malformed turn earns the least of these."""
    values = _differing_values(turn)
    if values is None or values.stop is None:
        return None
    stopping = values.stop - sum(each.unknown for each in values.queries) / len(values.queries)
    asking = {each.query: largest(each.values) - each.unknown for each in values.queries}
    if turn.action is None:
        return min(stopping, *asking.values())
    return stopping if turn.action.kb is None else asking.get(turn.action.query)


def route_regret(turn: JudgedTurn) -> float | None:
    """What the knowledge base brings, less what the best one does: at most 0. 0 for stopping; a malformed turn earns the least."""
    values = _differing_values(turn)
    if values is None:
        return None
    regrets = {
        (each.query, kb): value - largest(each.values) for each in values.queries for kb, value in zip(values.kbs, each.values, strict=True)
    }
    if turn.action is None:
        return min(regrets.values())
    return 0.0 if turn.action.kb is None else regrets.get((turn.action.query, turn.action.kb))


def _differing_values(turn: JudgedTurn) -> PlanValues | None:
    return turn.values if turn.values and turn.values.queries and turn.values.spread >= turn.config.min_spread else None


VALUED = "route regret (docs/17_route_regret.md); nearest: VinePPO (arXiv 2410.01679), IG-Search (arXiv 2604.15148)"
TERMS = {
    "step": Term(step_reward, ALL, "R1-Router (arXiv 2505.22095), section Rewards", needs_gold=True),
    "routing": Term(routing, PLAN, "R1-Router (arXiv 2505.22095): the retriever's part of the plan reward", needs_gold=True),
    "guarded_query": Term(guarded_query, PLAN, "R1-Router (arXiv 2505.22095): the query's part, guarded against gaming", needs_gold=True),
    "outcome": Term(lambda turn: turn.outcome, ALL, "GRPO with outcome rewards, as in Search-R1 (arXiv 2503.09516)", needs_chain=True),
    "new_evidence": Term(new_evidence, PLAN, "StepSearch (arXiv 2505.15107): information gain", needs_chain=True, needs_gold=True),
    "redundancy": Term(redundancy, PLAN, "StepSearch (arXiv 2505.15107): redundancy penalty", -1.0, needs_chain=True),
    "information_gain": Term(lambda turn: turn.gain, ANSWER, "IGPO (arXiv 2510.14967): gain in p(gold answer) per turn", -1.0),
    "retrieval_cost": Term(retrieval_cost, PLAN, "fewer calls, as R1-Searcher++ (arXiv 2505.17005) rewards them", -1.0),
    "query_value": Term(query_value, PLAN, VALUED, None, needs_values=True),
    "route_regret": Term(route_regret, PLAN, VALUED, None, needs_values=True, of_route=True),
    "format": Term(lambda turn: 1.0, ALL, "R1-Router (arXiv 2505.22095): format reward"),
}


class RewardError(ValueError):
    """A reward that cannot be used, or that returned no finite number; the message is one line."""


def composed_of(terms: Mapping[str, Any]) -> tuple[Term, ...]:
    """Raises RewardError for an unknown reward or kind of turn, and for a weight that is no number."""
    return tuple(_weighted(name, weight) for name, weight in terms.items())


def unjudged_without_gold(terms: Mapping[str, Any]) -> list[str]:
    """Kinds of turns that nothing judges where gold steps are not known."""
    judging = [set(term.kinds) & term.weights.keys() for term in composed_of(terms) if not term.needs_gold]
    return [kind for kind in ("plan", "answer") if not any(kind in kinds for kinds in judging)]


def composed_reward(turn: JudgedTurn, terms: tuple[Term, ...]) -> TurnReward | None:
    """The weighted sum, with the components of the step reward; None if no term judges the turn. Raises RewardError for a term that fails."""
    judge = judge_of(turn.state, turn.similarity, turn.config, turn.retrievers)
    components = {"format": float(turn.well_formed)} | ({} if judge is None else judge(turn.text).components)
    parts: dict[str, float] = {}
    for term in terms:
        weight = term.weights.get(turn.state.kind)
        if weight is not None and (value := _value(term, turn)) is not None:
            components[term.name] = value
            parts[term.name] = weight * value
    of_route = [parts[term.name] for term in terms if term.of_route and term.name in parts]
    route = sum(of_route) if of_route and turn.action is not None and turn.action.kb is not None else None
    return TurnReward(sum(parts.values()), components, parts, route) if parts else None


def _weighted(name: str, weight: Any) -> Term:
    given = dict(weight) if isinstance(weight, Mapping) else dict.fromkeys(ALL, weight)
    if wrong := [kind for kind in given if kind not in ALL]:
        raise RewardError(f"reward.terms.{name}: {wrong[0]!r} is no kind of turn; expected {', '.join(ALL)}")
    if odd := [number for number in given.values() if not _is_number(number)]:
        raise RewardError(f"reward.terms.{name}: weight {odd[0]!r}; expected a number, or numbers by kind of turn ({', '.join(ALL)})")
    if name in TERMS:
        return replace(TERMS[name], name=name, weights=given)
    module, colon, function = name.partition(":")
    if not colon:
        raise RewardError(f"reward.terms.{name}: no such reward; expected MODULE:FUNCTION or one of {', '.join(TERMS)}")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise RewardError(f"reward.terms.{name}: {error}; expected MODULE:FUNCTION, importable from where the command is started") from None
    if not callable(found):
        raise RewardError(f"reward.terms.{name}: found {type(found).__name__}, expected a function of one JudgedTurn")
    return Term(found, ALL, module, None, name=name, weights=given)


def _value(term: Term, turn: JudgedTurn) -> float | None:
    """The value of a term. NumPy numbers are accepted; a bool is an error."""
    place = f"for a {turn.state.kind} turn of question {turn.state.question.id}; expected a finite number, or None for turns that it does not judge"
    try:
        value: Any = term.value(turn)
    except Exception as error:  # from a user's function: say which, and where it raised
        last = traceback.extract_tb(error.__traceback__)[-1]
        message = " ".join(str(error).split())
        raise RewardError(f"reward {term.name} raised {type(error).__name__}: {message} ({last.filename}:{last.lineno}) {place}") from error
    number = value.item() if getattr(value, "size", 0) == 1 else value
    if number is not None and not _is_number(number):
        raise RewardError(f"reward {term.name} returned {value!r} {place}")
    return None if number is None else float(number)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
