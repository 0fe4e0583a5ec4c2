"""`new_evidence` and `redundancy`: what a search brought that was not there before, and what it brought again.

StepSearch (arXiv 2505.15107) adds, per search, the gain in gold evidence over what the episode has seen and subtracts the share of passages that
it has seen before. Evidence there is similarity to gold documents; here a piece of evidence is a gold step whose answer stands in a passage of
its knowledge base, beside the names that the step asks about.
"""

from __future__ import annotations

from collections.abc import Iterable

from retrieval_actors.records import Passage
from rewards.judged_turn import JudgedTurn
from rewards.terms.term import Term
from rollout.needs import holds_answer
from rollout.records import GoldStep


def held(passages: Iterable[Passage], gold_steps: Iterable[GoldStep]) -> set[int]:
    """Which of the gold steps some passage answers."""
    found = list(passages)
    return {i for i, gold in enumerate(gold_steps) if any(holds_answer(passage, gold) for passage in found)}


def new_evidence(turn: JudgedTurn) -> float | None:
    """Share of the gold steps that the search answers and no earlier one did; 0 for stopping; None where nobody knows."""
    gold_steps = turn.state.question.gold_steps
    if gold_steps is None or turn.step is None:
        return None
    if not gold_steps:
        return 0.0
    return len(held(turn.step.passages, gold_steps) - held(turn.seen_before(), gold_steps)) / len(gold_steps)


def redundancy(turn: JudgedTurn) -> float | None:
    """Minus the share of the passages that an earlier search brought already; 0 for stopping."""
    if turn.step is None:
        return None
    passages = [passage for passage in turn.step.passages if not passage.error]
    seen = {(passage.kb, passage.id) for passage in turn.seen_before()}
    return -sum((passage.kb, passage.id) in seen for passage in passages) / len(passages) if passages else 0.0


PLAN = frozenset({"plan"})
NEW_EVIDENCE = Term("new_evidence", new_evidence, PLAN, "StepSearch (arXiv 2505.15107): information gain", needs_chain=True)
REDUNDANCY = Term("redundancy", redundancy, PLAN, "StepSearch (arXiv 2505.15107): redundancy penalty", low=-1.0, needs_chain=True)
