"""The metrics of an episode. Every metric is a ratio of two sums over questions: right answers per question, right routes per plan turn,
and so on. `count` gives numerator and denominator for one episode; `significance.py` turns them into intervals and tests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from retrieval_actors.records import Passage
from rewards.answer_metrics import exact_match, f1, f1_recall
from rewards.config import RewardConfig
from rewards.step_rewards import plan_needs
from rollout.confidence import cited, is_refusal
from rollout.need_matcher import NeedMatcher
from rollout.needs import askable_needs, holds_answer, right_kbs
from rollout.records import OUTSIDE, Exchange, GoldStep, Trajectory, TurnGroup
from rollout.turn_parser import parse_answer, parse_plan

KB = "kb/"  # Prefix of the share of searches that went to one knowledge base: `kb/text`
METRICS = {  # Name of each metric -> what it is the share or mean of
    "f1_recall": "token recall of the gold answer with the best F1, as the paper's evaluator computes it",
    "exact_match": "answers that are a gold answer, as SQuAD compares them",
    "f1": "token F1 with the best gold answer, as SQuAD computes it",
    "routing_accuracy": "plan turns with an open need that named the knowledge base of a need that could be searched for",
    "stop_accuracy": "plan turns without an open need that stopped",
    "premature_stop_rate": "plan turns with an open need that stopped",
    "unjudged_rate": "plan turns, of questions with gold steps, where it is in doubt whether a need is open",
    "retrievals_per_question": "searches per episode",
    "hit_at_k": "pieces of gold evidence that were among the top k passages of some search",
    "citation_precision": "cited passages that are gold evidence",
    "citation_recall": "pieces of gold evidence in the passages that were read for a sub-answer, of which one was cited",
    "abstention_precision": "questions without an answer (`unknown`, or too little confidence) that are outside all knowledge bases",
    "abstention_recall": "questions outside all knowledge bases that got no answer",
    "format_rate": "well-formed turns",
    "tokens_per_question": "tokens read and written, turn by turn",
    "seconds_per_question": "seconds from the first turn to the answer, beside the other questions of the batch",
    "retrievals_per_right_answer": "searches per exact match",
    "tokens_per_right_answer": "tokens read and written per exact match",
}
Counts = dict[str, tuple[float, float]]  # Metric -> (numerator, denominator) of one question; empty where a search failed
STOP, MALFORMED = "stop", "malformed"
Confusion = Mapping[tuple[str, str], int]  # (right, chosen) -> plan turns; right: "text", "table or text", or `stop`: no need was open


def count(
    trajectory: Trajectory,
    retrievers: Mapping[str, str],
    gold_passages: Sequence[str] = (),
    matcher: NeedMatcher | None = None,
    min_confidence: float = 0.0,
) -> Counts:
    """The metrics of one episode, along its trunk; of a recorded turn, by its first response. `retrievers`: retriever name, as the policy
    writes it -> knowledge base. `gold_passages`: ids of the passages that hold the answer; without them a gold step whose answer is in a
    passage is a piece of evidence. Each knowledge base gets a count `kb/NAME`, its share of the searches. An episode with a failed search
    has no counts; one that ended early counts as wrong. An answer below `min_confidence` is as good as none for abstention, and of questions
    outside all knowledge bases only that is counted."""
    if trajectory.search_errors:
        return {}
    if trajectory.groups and trajectory.groups[0].state.target is not None:
        return _count_recorded(trajectory.groups[0], retrievers)
    abstains = is_refusal(trajectory.answer) or (trajectory.confidence is not None and trajectory.confidence < min_confidence)
    if trajectory.question.family == OUTSIDE:
        return {"abstention_precision": (abstains, abstains), "abstention_recall": (abstains, 1)}
    answers, answer, limits = trajectory.question.answers, trajectory.answer, trajectory.question.answer_range
    right = exact_match(answer, answers, limits)
    searched = [step.exchange.kb for step in trajectory.steps if step.exchange]
    tokens = sum(len(group.state.prompt_ids) + len(group.chosen.response_ids) for group in trajectory.groups)
    known = 1 if answers else 0
    return {
        "f1_recall": (known and f1_recall(answer, answers), known),
        "exact_match": (known and right, known),
        "f1": (known and f1(answer, answers, limits), known),
        "retrievals_per_question": (len(searched), 1),
        "abstention_precision": (0, abstains),
        **_evidence(trajectory, gold_passages),
        "tokens_per_question": (tokens, 1),
        "seconds_per_question": (trajectory.seconds, 1),
        "retrievals_per_right_answer": (len(searched) * known, known and right),
        "tokens_per_right_answer": (tokens * known, known and right),
        **_decisions(trajectory, matcher),
        **{f"{KB}{kb}": (searched.count(kb), len(searched)) for kb in sorted({*retrievers.values(), *searched})},
    }


def averaged(counts: Sequence[Counts]) -> Counts:
    """The mean numerators and denominators of several episodes of one question; episodes with a failed search are left out. The question
    then weighs as much as one that is asked once, which a paired test needs."""
    measured = [found for found in counts if found]
    names = {name for found in measured for name in found}
    means = {name: np.mean([found.get(name, (0.0, 0.0)) for found in measured], axis=0) for name in names}
    return {name: (float(top), float(bottom)) for name, (top, bottom) in means.items()}


def needs_by_step(trajectory: Trajectory, matcher: NeedMatcher | None) -> list[list[GoldStep] | None]:
    """The needs that each plan turn could search for. None for a search that no plan turn decided, and where the needs are not known."""
    history: list[Exchange] = []
    found: list[list[GoldStep] | None] = []
    for step in trajectory.steps:
        found.append(None if step.plan is None else askable_needs(trajectory.question, history, matcher))
        if step.plan is not None and step.exchange is not None:
            history.append(step.exchange)
    return found


def _decisions(trajectory: Trajectory, matcher: NeedMatcher | None) -> Counts:
    """Metrics of routing, stopping and format. A stop that the method overruled (`never_stop`) is not judged, nor is the search in its place."""
    needy = routed = needless = stopped = premature = plans = unjudged = well_formed = turns = 0
    for step, needs in zip(trajectory.steps, needs_by_step(trajectory, matcher), strict=True):
        if step.plan is None:
            continue
        stops = step.action is not None and step.action.kb is None
        said = parse_plan(step.plan.text, {}) if step.action and not stops else None
        overruled = said is not None and said.kb is None
        if trajectory.question.gold_steps is not None and not overruled:
            plans += 1
            if needs is None:
                unjudged += 1
            elif needs:
                needy += 1
                routed += step.action is not None and step.action.kb in right_kbs(needs)
                premature += stops
            else:
                needless += 1
                stopped += stops
        turns += 1
        well_formed += step.action is not None
        if step.answer is not None:
            turns += 1
            well_formed += parse_answer(step.answer.text) is not None
    return {
        "routing_accuracy": (routed, needy),
        "stop_accuracy": (stopped, needless),
        "premature_stop_rate": (premature, needy),
        "unjudged_rate": (unjudged, plans),
        "format_rate": (well_formed + bool(trajectory.answer), turns + 1),
    }


def _evidence(trajectory: Trajectory, gold_passages: Sequence[str]) -> Counts:
    """Pieces of gold evidence that were found, and cited. A table that was cut into chunks (ids ID#NUMBER) is found when one of them is."""
    gold_steps = trajectory.question.gold_steps or ()

    def pieces(passages: Iterable[Passage]) -> set[Any]:
        if gold_passages:
            return {part for passage in passages for part in (passage.id, passage.id.rpartition("#")[0])} & set(gold_passages)
        return {place for place, gold in enumerate(gold_steps) for passage in passages if holds_answer(passage, gold)}

    found = pieces([passage for step in trajectory.steps for passage in step.passages])
    read = pieces([passage for step in trajectory.steps if step.support for passage in step.passages])
    named = [passage for step in trajectory.steps for passage in cited(step)]
    known = bool(gold_passages or gold_steps)
    return {
        "hit_at_k": (len(found), len(set(gold_passages) or gold_steps)),
        "citation_precision": (known and sum(bool(pieces([passage])) for passage in named), known and len(named)),
        "citation_recall": (len(pieces(named)), len(read)),
    }


def _count_recorded(group: TurnGroup, retrievers: Mapping[str, str]) -> Counts:
    state, text = group.state, group.chosen.text
    found: dict[str, float] = {}
    if state.kind == "plan":
        action, needs = parse_plan(text, retrievers), plan_needs(state, RewardConfig())
        found["format_rate"] = action is not None
        found["premature_stop_rate" if needs else "stop_accuracy"] = action is not None and action.kb is None
        if needs:
            found["routing_accuracy"] = action is not None and action.kb in needs[0].kbs
    else:
        answer = parse_answer(text)
        found["format_rate"] = answer is not None
        if state.kind == "final":
            answers, limits, said = state.question.answers, state.question.answer_range, answer or ""
            found["f1_recall"] = f1_recall(said, answers)
            found |= {"exact_match": exact_match(said, answers, limits), "f1": f1(said, answers, limits)}
    return {name: (found.get(name, 0.0), float(name in found)) for name in METRICS}


def confusion(rows: Iterable[Mapping[str, Any]]) -> Counter[tuple[str, str]]:
    """`rows`: stored episodes. Plan turns whose right choice is unknown, and searches that no plan turn decided, do not count."""
    counts: Counter[tuple[str, str]] = Counter()
    for row in rows:
        for step in row.get("steps", ()):
            if step.get("gold") is not None:
                counts[" or ".join(sorted(step["gold"])) or STOP, chosen(step)] += 1
    return counts


def chosen(step: Mapping[str, Any]) -> str:
    """A knowledge base, `stop`, or `malformed`."""
    return step["kb"] or (STOP if step.get("stops") else MALFORMED)


def is_right(gold: str, choice: str) -> bool:
    return choice in gold.split(" or ")
