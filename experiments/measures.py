"""What is measured on a trajectory, and how sure a figure is.

Every measure is a ratio of two sums over questions (right answers per question, right routes per plan turn, ...), so one bootstrap over
questions serves all of them: questions are drawn with replacement, and turns stay with their question, as they are not independent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rewards.judged_turn import plan_needs
from rewards.paper_evaluator import f1_recall
from rewards.squad_metrics import exact_match
from rollout.needs import askable_needs
from rollout.prompts import parse_answer, parse_plan
from rollout.records import Exchange, Trajectory, TurnGroup

RESAMPLES = 2000
MEASURES = {
    "f1_recall": "token recall of the gold answer with the best F1",
    "exact_match": "answers that are a gold answer after normalisation",
    "routing_accuracy": "plan turns with a need left that named the knowledge base of a need that could be asked for",
    "stop_accuracy": "plan turns without a need left that stopped",
    "premature_stop_rate": "plan turns with a need left that stopped",
    "retrievals_per_question": "searches an episode made",
    "format_rate": "turns that were well-formed",
}
"""Name of each measure and what it is the share (or mean) of."""


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % bootstrap interval; NaN where nothing could be measured."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return "-" if np.isnan(self.value) else f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


Counts = dict[str, tuple[float, float]]
"""Measure -> (numerator, denominator) of one question."""


def count(trajectory: Trajectory, retrievers: Mapping[str, str]) -> Counts:
    """The measures of one episode, by its trunk; of a recorded turn, by its first response.

    `retrievers`: retriever name, as the policy writes it -> knowledge base.
    """
    if trajectory.groups and trajectory.groups[0].state.target is not None:
        return _count_recorded(trajectory.groups[0], retrievers)
    question = trajectory.question
    asked = routed = over = stopped = premature = well_formed = turns = 0
    history: list[Exchange] = []
    for step in trajectory.steps:
        if step.plan is None:  # static retrieval decides nothing
            continue
        if question.gold_steps is not None:
            needs = askable_needs(question.gold_steps, history)
            stops = step.action is not None and step.action.kb is None
            if needs:
                asked += 1
                routed += step.action is not None and step.action.kb in {need.kb for need in needs}
                premature += stops
            else:
                over += 1
                stopped += stops
        turns += 1
        well_formed += step.action is not None
        if step.answer is not None:
            turns += 1
            well_formed += parse_answer(step.answer.text) is not None
        if step.exchange is not None:
            history.append(step.exchange)
    return {
        "f1_recall": (f1_recall(trajectory.answer, question.answers), 1) if question.answers else (0, 0),
        "exact_match": (exact_match(trajectory.answer, question.answers), 1) if question.answers else (0, 0),
        "routing_accuracy": (routed, asked),
        "stop_accuracy": (stopped, over),
        "premature_stop_rate": (premature, asked),
        "retrievals_per_question": (trajectory.retrievals, 1),
        "format_rate": (well_formed + bool(trajectory.answer), turns + 1),
    }


def _count_recorded(group: TurnGroup, retrievers: Mapping[str, str]) -> Counts:
    state, text = group.state, group.chosen.text
    counts: Counts = dict.fromkeys(MEASURES, (0.0, 0.0))
    if state.kind == "plan":
        action, needs = parse_plan(text, retrievers), plan_needs(state)
        stops = action is not None and action.kb is None
        if needs:
            counts["routing_accuracy"] = (action is not None and action.kb == needs[0].kb, 1)
            counts["premature_stop_rate"] = (stops, 1)
        else:
            counts["stop_accuracy"] = (stops, 1)
        return counts | {"format_rate": (action is not None, 1)}
    answer = parse_answer(text)
    if state.kind == "final":
        counts["f1_recall"] = (f1_recall(answer or "", state.question.answers), 1)
        counts["exact_match"] = (exact_match(answer or "", state.question.answers), 1)
    return counts | {"format_rate": (answer is not None, 1)}


def summarise(counts: Sequence[Counts], seed: int = 0) -> dict[str, Interval]:
    """Every measure over the questions, with its interval."""
    return {name: _interval(_columns(counts, name), seed) for name in MEASURES}


def paired_difference(before: Sequence[Counts], after: Sequence[Counts], seed: int = 0) -> dict[str, Interval]:
    """`after` minus `before` on the same questions in the same order: both are drawn together, so what questions share cancels out.

    Raises ValueError when the two differ in length.
    """
    if len(before) != len(after):
        raise ValueError(f"a paired difference needs the same questions twice: {len(before)} before, {len(after)} after")
    return {name: _interval(_columns(after, name), seed, minus=_columns(before, name)) for name in MEASURES}


def by_family(trajectories: Sequence[Trajectory], counts: Sequence[Counts]) -> dict[str, list[Counts]]:
    """The counts of each question family, families in alphabetical order."""
    families = sorted({trajectory.question.family for trajectory in trajectories})
    return {family: [c for t, c in zip(trajectories, counts, strict=True) if t.question.family == family] for family in families}


def excludes_zero(interval: Interval | Mapping[str, float]) -> bool:
    low, high = (interval.low, interval.high) if isinstance(interval, Interval) else (interval["low"], interval["high"])
    return low > 0 or high < 0


def _columns(counts: Sequence[Counts], name: str) -> np.ndarray:
    return np.array([c[name] for c in counts], dtype=np.float64).reshape(-1, 2)


def _interval(columns: np.ndarray, seed: int, minus: np.ndarray | None = None) -> Interval:
    """`columns` and `minus`: (questions, 2) numerators and denominators."""
    nothing = Interval(np.nan, np.nan, np.nan)
    if not columns[:, 1].sum() or (minus is not None and not minus[:, 1].sum()):
        return nothing
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(len(columns), np.full(len(columns), 1 / len(columns)), size=RESAMPLES)
    value, resampled = _ratio(columns.sum(0)), _ratio(draws @ columns)
    if minus is not None:
        value, resampled = value - _ratio(minus.sum(0)), resampled - _ratio(draws @ minus)
    low, high = np.nanpercentile(resampled, [2.5, 97.5])
    return Interval(float(value), float(low), float(high))


def _ratio(sums: np.ndarray) -> np.ndarray:
    """(..., 2) -> (...): numerator over denominator, NaN where the denominator is 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return sums[..., 0] / sums[..., 1]
