"""Rewards put together by configuration: `reward.terms` names them, each with a weight or with weights by kind of turn.

    reward:
      terms:
        routing: 0.5
        guarded_query: {plan: 0.5}
        answers: 1.0
        retrieval_cost: 0.1
        my_package.my_rewards:brevity: {final: 0.2}

A reward of one's own is one function, `def brevity(turn: JudgedTurn) -> float | None`: what it says of one response, None where it has nothing to
say. It is called for malformed turns, too (`turn.well_formed`).
"""

from __future__ import annotations

import importlib
import math
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rewards.judged_turn import JudgedTurn
from rewards.step_rewards import judge_of
from rewards.terms.evidence import NEW_EVIDENCE, REDUNDANCY
from rewards.terms.information_gain import INFORMATION_GAIN
from rewards.terms.outcome import OUTCOME
from rewards.terms.queries import ENTITY_MATCH, GUARDED_QUERY, ROUTING
from rewards.terms.retrieval_cost import RETRIEVAL_COST
from rewards.terms.step import ANSWERS, STEP
from rewards.terms.well_formed import FORMAT
from rollout.records import TurnReward

TERMS = {
    term.name: term
    for term in (
        STEP,
        ANSWERS,
        ROUTING,
        ENTITY_MATCH,
        GUARDED_QUERY,
        OUTCOME,
        NEW_EVIDENCE,
        REDUNDANCY,
        INFORMATION_GAIN,
        RETRIEVAL_COST,
        FORMAT,
    )
}
KINDS = ("plan", "answer", "final")


class RewardError(ValueError):
    """A reward that cannot be used, or that returned what is no reward; the message is one line."""


@dataclass(frozen=True)
class Weighted:
    name: str
    value: Callable[[JudgedTurn], float | None]
    weights: Mapping[str, float]
    """By kind of turn; a kind that is missing is not judged by this term."""
    needs_chain: bool = False


def composed_of(terms: Mapping[str, Any]) -> tuple[Weighted, ...]:
    """What `reward.terms` says. Raises RewardError for an unknown reward, an unknown kind of turn, or a weight that is no number."""
    return tuple(_weighted(name, weight) for name, weight in terms.items())


def composed_reward(turn: JudgedTurn, terms: tuple[Weighted, ...]) -> TurnReward | None:
    """The weighted sum; None when no term has anything to say. Raises RewardError for a value that is no finite number, and for what a term raised.

    Beside the terms, the components of the step reward inform: whether it was routed right is to be seen whatever is paid for.
    """
    judge = judge_of(turn.state, turn.similarity, turn.config, turn.retrievers)
    components = {"format": float(turn.well_formed)} | ({} if judge is None else judge(turn.text).components)
    parts: dict[str, float] = {}
    for term in terms:
        weight = term.weights.get(turn.state.kind)
        if weight is None:
            continue
        value = _said(term, turn)
        if value is not None:
            components[term.name] = _checked(term.name, value, turn)
            parts[term.name] = weight * components[term.name]
    return TurnReward(sum(parts.values()), components, parts) if parts else None


def _weighted(name: str, weight: Any) -> Weighted:
    given = dict(weight) if isinstance(weight, Mapping) else dict.fromkeys(KINDS, weight)
    for kind, number in given.items():
        if kind not in KINDS:
            raise RewardError(f"reward.terms.{name}: {kind!r} is no kind of turn; expected {', '.join(KINDS)}")
        if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
            raise RewardError(f"reward.terms.{name}: weight {number!r}; expected a number, or numbers by kind of turn ({', '.join(KINDS)})")
    if name in TERMS:
        return Weighted(name, TERMS[name].value, given, TERMS[name].needs_chain)
    return Weighted(name, _own(name), given)


def _own(name: str) -> Callable[[JudgedTurn], float | None]:
    module, colon, function = name.partition(":")
    if not colon:
        raise RewardError(f"reward.terms.{name}: no such reward; expected MODULE:FUNCTION or one of {', '.join(TERMS)}")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise RewardError(f"reward.terms.{name}: {error}; expected MODULE:FUNCTION, importable from where the command is started") from None
    if not callable(found):
        raise RewardError(f"reward.terms.{name}: found {type(found).__name__}, expected a function of one JudgedTurn")
    return found


def _said(term: Weighted, turn: JudgedTurn) -> float | None:
    try:
        return term.value(turn)
    except Exception as error:  # somebody else's function: which one it was, and where, is all that helps
        last = traceback.extract_tb(error.__traceback__)[-1]
        raise RewardError(
            f"reward {term.name} raised {type(error).__name__}: {' '.join(str(error).split())} ({last.filename}:{last.lineno}) "
            f"for a {turn.state.kind} turn of question {turn.state.question.id}; expected a finite number, or None where it has nothing to say"
        ) from error


def _checked(name: str, value: Any, turn: JudgedTurn) -> float:
    """Numbers of numpy pass; a bool does not: it is more often a mistake than a reward."""
    number = value.item() if hasattr(value, "item") and getattr(value, "size", 0) == 1 else value
    if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
        raise RewardError(
            f"reward {name} returned {value!r} for a {turn.state.kind} turn of question {turn.state.question.id}; "
            "expected a finite number, or None where it has nothing to say"
        )
    return float(number)
