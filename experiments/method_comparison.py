"""Methods on the same questions: measured, resumed where they were, and compared pair by pair."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Protocol

from experiments.datasets import Dataset
from experiments.evaluation_folder import EvaluationFolder, Results, left_out, row_of
from experiments.evaluation_progress import EvaluationProgress
from experiments.measures import Counts, count, kb_shares, paired_difference, summarise
from experiments.methods import Measured
from experiments.significance import holm, mcnemar_p, permutation_p
from retrieval_actors.retriever import Retriever
from rewards.actor import names_of
from rollout.config import RolloutConfig
from rollout.episode import RecordedTurn
from rollout.records import Trajectory

TESTED = ("f1_recall", "exact_match", "routing_accuracy", "retrievals_per_question")
"""Measures whose differences are tested; p values are corrected for the number of methods."""
QUESTIONS_AT_ONCE = 16
"""A killed evaluation asks at most so many again for each worker."""


class Asks(Protocol):
    """The evaluation workers of a run."""

    def parts(
        self, items: Sequence[Any], retriever: Retriever, config: RolloutConfig, at_once: int = ...
    ) -> Iterator[tuple[int, Sequence[Any], list[Trajectory]]]: ...


def measure(
    evaluator: Asks, method: Measured, dataset: Dataset, retriever: Retriever, folder: EvaluationFolder, progress: EvaluationProgress
) -> Results:
    """What the method did on every held-out question; those that are in the folder are not asked again, unless a search of theirs failed."""
    results, retrievers = folder.results(method.name), names_of(retriever)
    to_ask = frozenset(results.left(map(id_of, dataset.heldout)))
    left = [item for item in dataset.heldout if id_of(item) in to_ask]
    progress.phase(method.label, total=len(dataset.heldout), done=len(dataset.heldout) - len(left))
    for _, items, trajectories in evaluator.parts(left, retriever, method.rollout, QUESTIONS_AT_ONCE):
        by_question: dict[str, list[Trajectory]] = {}
        for trajectory in trajectories:
            by_question.setdefault(trajectory.question.id, []).append(trajectory)
        rows = []
        for id in map(id_of, items):
            episodes = by_question.get(id, [])
            counts = [count(episode, retrievers, dataset.gold_passages.get(id, ())) for episode in episodes]
            rows.append(row_of(episodes, counts) if episodes else left_out(id))
        results.add(rows)
        progress.advance(len(items))
    return results


def id_of(item: Any) -> str:
    return item.question.id if isinstance(item, RecordedTurn) else item.id


def compared(results: Mapping[str, Results], methods: Sequence[Measured], ids: Sequence[str]) -> dict[str, Any]:
    """For summary.json: every measure of each method, and the paired difference of each to the first, with the p values of permutation tests
    (and of McNemar's, for exact match), corrected for the number of methods (Holm)."""
    counts = {method.name: results[method.name].counts(ids) for method in methods}
    families = [results[methods[0].name].rows[id]["family"] for id in ids]
    first = methods[0].name
    return {
        "questions": len(ids),
        "methods": {
            method.name: {
                "label": method.label,
                "isolates": method.isolates,
                **results[method.name].went_wrong(ids),
                **figures(counts[method.name], families),
            }
            for method in methods
        },
        "against": first,
        "differences": differences(counts[first], {name: found for name, found in counts.items() if name != first}),
    }


def figures(counts: Sequence[Counts], families: Sequence[str]) -> dict[str, Any]:
    def intervals(some: Sequence[Counts]) -> dict[str, Any]:
        return {name: asdict(interval) for name, interval in summarise(some).items()}

    of_family = {family: [c for c, f in zip(counts, families, strict=True) if f == family] for family in sorted(set(families))}
    return {
        "questions": len(counts),
        "overall": intervals(counts),
        "kb_shares": {kb: asdict(interval) for kb, interval in kb_shares(counts).items()},
        "by_family": {family: {"questions": len(some), **intervals(some)} for family, some in of_family.items()},
    }


def differences(first: Sequence[Counts], others: Mapping[str, Sequence[Counts]]) -> dict[str, dict[str, Any]]:
    """Method -> measure -> `first` minus the method, its interval, `p`, and `p_corrected`."""
    found = {
        name: {measure: asdict(interval) for measure, interval in paired_difference(counts, first).items()}
        for name, counts in others.items()
    }
    for measure in TESTED:
        p_values = {name: permutation_p(counts, first, measure) for name, counts in others.items()}
        for name, corrected in holm(p_values).items():
            found[name][measure] |= {"p": p_values[name], "p_corrected": corrected}
    mcnemar = {name: mcnemar_p(counts, first) for name, counts in others.items()}
    for name, corrected in holm(mcnemar).items():
        found[name]["exact_match"] |= {"p_mcnemar": mcnemar[name], "p_mcnemar_corrected": corrected}
    return found
