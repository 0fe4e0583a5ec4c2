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
from rewards.squad_metrics import exact_match, f1
from rollout.needs import askable_needs, holds_answer
from rollout.prompts import parse_answer, parse_plan
from rollout.records import Exchange, Step, Trajectory, TurnGroup

RESAMPLES = 2000
KB = "kb/"
"""Begins the names of counts by knowledge base."""
MEASURES = {
    "f1_recall": "token recall of the gold answer with the best F1, as the paper's evaluator computes it",
    "exact_match": "answers that are a gold answer, as SQuAD compares them",
    "f1": "token F1 with the best gold answer, as SQuAD computes it",
    "routing_accuracy": "plan turns with a need left that named the knowledge base of a need that could be asked for",
    "stop_accuracy": "plan turns without a need left that stopped",
    "premature_stop_rate": "plan turns with a need left that stopped",
    "retrievals_per_question": "searches an episode made",
    "hit_at_k": "pieces of gold evidence that stood among the top k passages of some search",
    "format_rate": "turns that were well-formed",
    "tokens_per_question": "tokens read and written, turn by turn",
    "seconds_per_question": "seconds from the first turn to the answer, beside the other questions of the batch",
    "retrievals_per_right_answer": "searches, for each exact match",
    "tokens_per_right_answer": "tokens read and written, for each exact match",
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


def count(trajectory: Trajectory, retrievers: Mapping[str, str], gold_passages: Sequence[str] = ()) -> Counts:
    """The measures of one episode, by its trunk; of a recorded turn, by its first response.

    `retrievers`: retriever name, as the policy writes it -> knowledge base. `gold_passages`: ids of the passages that hold the answer, where the
    data set names them; otherwise a gold step whose answer stands in a passage is a piece of evidence. Beside the measures there is a count
    `kb/NAME` for each knowledge base: its share of the searches.
    """
    if trajectory.groups and trajectory.groups[0].state.target is not None:
        return _count_recorded(trajectory.groups[0], retrievers)
    answers, answer, limits = trajectory.question.answers, trajectory.answer, trajectory.question.answer_range
    right = exact_match(answer, answers, limits)
    asked_kbs = [step.exchange.kb for step in trajectory.steps if step.exchange]
    tokens = sum(len(group.state.prompt_ids) + len(group.chosen.response_ids) for group in trajectory.groups)
    known = 1 if answers else 0
    return {
        "f1_recall": (known and f1_recall(answer, answers), known),
        "exact_match": (known and right, known),
        "f1": (known and f1(answer, answers, limits), known),
        "retrievals_per_question": (len(asked_kbs), 1),
        "hit_at_k": _hits(trajectory, gold_passages),
        "tokens_per_question": (tokens, 1),
        "seconds_per_question": (trajectory.seconds, 1),
        "retrievals_per_right_answer": (len(asked_kbs) * known, known and right),
        "tokens_per_right_answer": (tokens * known, known and right),
        **_decisions(trajectory),
        **{f"{KB}{kb}": (asked_kbs.count(kb), len(asked_kbs)) for kb in sorted({*retrievers.values(), *asked_kbs})},
    }


def _decisions(trajectory: Trajectory) -> Counts:
    """What plan turns decided, and how many turns were well-formed. Where a turn stopped and the method searched all the same (`never_stop`),
    nothing is said of where it went or whether it stopped: neither was its decision."""
    question = trajectory.question
    asked = routed = over = stopped = premature = well_formed = turns = 0
    history: list[Exchange] = []
    for step in trajectory.steps:
        if step.plan is None:  # a search that no turn decided
            continue
        if question.gold_steps is not None and not _overruled(step):
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
        "routing_accuracy": (routed, asked),
        "stop_accuracy": (stopped, over),
        "premature_stop_rate": (premature, asked),
        "format_rate": (well_formed + bool(trajectory.answer), turns + 1),
    }


def _overruled(step: Step) -> bool:
    """Whether the policy stopped and a search was made in spite of it."""
    said = parse_plan(step.plan.text, {}) if step.plan and step.action and step.action.kb is not None else None
    return said is not None and said.kb is None


def _hits(trajectory: Trajectory, gold_passages: Sequence[str]) -> tuple[float, float]:
    """A table that was cut into chunks is found when one of them is: their ids are ID#NUMBER."""
    passages = [passage for step in trajectory.steps for passage in step.passages]
    if gold_passages:
        found = {part for passage in passages for part in (passage.id, passage.id.rpartition("#")[0])}
        return len(found & set(gold_passages)), len(set(gold_passages))
    gold_steps = trajectory.question.gold_steps or ()
    return sum(any(holds_answer(passage, gold) for passage in passages) for gold in gold_steps), len(gold_steps)


def averaged(counts: Sequence[Counts]) -> Counts:
    """Of several episodes of one question, which then weighs as much as it does where it is asked once: numerators and denominators, on average.

    A paired test swaps the two results of a question, so both have to be on one scale.
    """
    names = {name for found in counts for name in found}
    means = {name: np.mean([found.get(name, (0.0, 0.0)) for found in counts], axis=0) for name in names}
    return {name: (float(top), float(bottom)) for name, (top, bottom) in means.items()}


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
        counts["exact_match"] = (exact_match(answer or "", state.question.answers, state.question.answer_range), 1)
        counts["f1"] = (f1(answer or "", state.question.answers, state.question.answer_range), 1)
    return counts | {"format_rate": (answer is not None, 1)}


def summarise(counts: Sequence[Counts], seed: int = 0) -> dict[str, Interval]:
    """Every measure over the questions, with its interval."""
    return {name: interval(columns(counts, name), seed) for name in MEASURES}


def kb_shares(counts: Sequence[Counts], seed: int = 0) -> dict[str, Interval]:
    """Knowledge base -> its share of all searches."""
    names = sorted({name for found in counts for name in found if name.startswith(KB)})
    return {name.removeprefix(KB): interval(columns(counts, name), seed) for name in names}


def paired_difference(before: Sequence[Counts], after: Sequence[Counts], seed: int = 0) -> dict[str, Interval]:
    """`after` minus `before` on the same questions in the same order: both are drawn together, so what questions share cancels out.

    Raises ValueError when the two differ in length.
    """
    if len(before) != len(after):
        raise ValueError(f"a paired difference needs the same questions twice: {len(before)} before, {len(after)} after")
    return {name: interval(columns(after, name), seed, minus=columns(before, name)) for name in MEASURES}


def by_family(trajectories: Sequence[Trajectory], counts: Sequence[Counts]) -> dict[str, list[Counts]]:
    """The counts of each question family, families in alphabetical order."""
    families = sorted({trajectory.question.family for trajectory in trajectories})
    return {family: [c for t, c in zip(trajectories, counts, strict=True) if t.question.family == family] for family in families}


def excludes_zero(interval: Interval | Mapping[str, float]) -> bool:
    low, high = (interval.low, interval.high) if isinstance(interval, Interval) else (interval["low"], interval["high"])
    return low > 0 or high < 0


def columns(counts: Sequence[Counts], name: str) -> np.ndarray:
    """(questions, 2): numerator and denominator of a measure; zeros where it was not counted."""
    return np.array([found.get(name, (0.0, 0.0)) for found in counts], dtype=np.float64).reshape(-1, 2)


def interval(counted: np.ndarray, seed: int, minus: np.ndarray | None = None) -> Interval:
    """Of the ratio of the sums of `counted`, less that of `minus`, both (questions, 2), by a bootstrap over questions."""
    nothing = Interval(np.nan, np.nan, np.nan)
    if not counted[:, 1].sum() or (minus is not None and not minus[:, 1].sum()):
        return nothing
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(len(counted), np.full(len(counted), 1 / len(counted)), size=RESAMPLES)
    value, resampled = ratio(counted.sum(0)), ratio(draws @ counted)
    if minus is not None:
        value, resampled = value - ratio(minus.sum(0)), resampled - ratio(draws @ minus)
    low, high = np.nanpercentile(resampled, [2.5, 97.5])
    return Interval(float(value), float(low), float(high))


def ratio(sums: np.ndarray) -> np.ndarray:
    """(..., 2) -> (...): numerator over denominator, NaN where the denominator is 0."""
    top, bottom = sums[..., 0], sums[..., 1]
    return np.divide(top, bottom, out=np.full(np.shape(top), np.nan), where=bottom != 0)
