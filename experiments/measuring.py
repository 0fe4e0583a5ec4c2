"""The measurements around training: before, after, and other ways of routing, all on the same held-out questions."""

from __future__ import annotations

import dataclasses
from typing import Any

from experiments.evaluate import Evaluation
from experiments.measures import paired_difference
from experiments.methods import WITHOUT_GOLD, has_gold, routable
from experiments.parts import Run
from experiments.passage_pictures import passage_pictures
from experiments.summary import summary
from learner.scoring import Scoring
from retrieval_actors.recall import recall_at
from rollout.records import Question


def measure_start(run: Run) -> None:
    """What the policy can do before training; a resumed run knows it already."""
    if "before" in run.folder.summary():
        return
    measured: dict[str, Any] = {}
    catalog = run.parts.retriever.catalog
    if run.dataset.gold_passages and [card.modality for card in catalog] == ["text"]:  # gold tables are named whole, and stored in chunks
        measured["recall"] = recall_of_raw_questions(run)
    with run.timed("evaluate_before"):
        run.progress.phase("evaluate before")
        before = run.parts.evaluator.run(
            run.dataset.heldout, run.parts.evaluation_retriever, progress=run.progress, gold_passages=run.dataset.gold_passages
        )
    with run.timed("baselines"):
        measured["start_baselines"] = other_routings(run, run.config.evaluation.start_baselines, "before")
    write_heldout(run, "before", before)
    run.folder.write_summary(summary(run, measured | {"before": before.summary()}))


def measure_end(run: Run) -> None:
    """The best policy on the questions that the start was measured on, the paired difference, and the other ways of routing."""
    run.parts.evaluator.use(str(run.folder.policy))
    with run.timed("evaluate_after"):
        run.progress.phase("evaluate after")
        after = run.parts.evaluator.run(
            run.dataset.heldout, run.parts.evaluation_retriever, progress=run.progress, gold_passages=run.dataset.gold_passages
        )
    with run.timed("baselines"):
        baselines = other_routings(run, run.config.evaluation.baselines, "after")
    write_heldout(run, "after", after)
    before_counts = [row["counts"] for row in run.folder.read_trajectories("before")]
    difference = {name: dataclasses.asdict(interval) for name, interval in paired_difference(before_counts, after.counts).items()}
    known = {key: value for key, value in run.folder.summary().items() if key in ("recall", "before", "start_baselines")}
    run.folder.write_summary(summary(run, known | {"after": after.summary(), "difference": difference, "baselines": baselines}))


def write_heldout(run: Run, when: str, evaluation: Evaluation) -> None:
    """With what each turn would have earned: nobody learns from it, the report shows it."""
    made = evaluation.trajectories
    with run.tally.timed("score_heldout"):
        scoring = Scoring(run.parts.algorithm.config.reward_actors, run.config.learner.deadline_s)
        scoring.begin(0, made)
        turns = scoring.turns()
    run.folder.write_trajectories(when, made, evaluation.counts, turns, pictures=passage_pictures(made, run.parts.evaluation_folders))


def note_stop(run: Run) -> None:
    """What is known of a run that was stopped, or failed, before its end."""
    known = {key: value for key, value in run.folder.summary().items() if key in ("recall", "before", "start_baselines")}
    run.folder.write_summary(summary(run, known))


def other_routings(run: Run, routings: list[str], when: str) -> dict[str, Any]:
    """Routing -> summary, with the policy that the evaluation workers hold."""
    found = {}
    measured = routable(routings, has_gold(run.dataset.heldout))
    if measured != list(routings):
        run.progress.say(WITHOUT_GOLD, style="yellow")
    for routing in measured:
        run.progress.phase(f"evaluate {when}, routing: {routing}")
        evaluation = run.parts.evaluator.run(
            run.dataset.heldout, run.parts.evaluation_retriever, routing, run.progress, run.dataset.gold_passages
        )
        found[routing] = evaluation.summary()
    return found


def recall_of_raw_questions(run: Run) -> dict[str, float]:
    """How many gold passages one search with the whole question finds: what step-wise retrieval has to beat."""
    run.progress.phase("recall of the gold passages for the raw questions")
    questions = [q for part in (run.dataset.train, run.dataset.validation, run.dataset.heldout) for q in part if isinstance(q, Question)]
    asked = [(question.text, run.dataset.gold_passages[question.id]) for question in questions]
    recall = recall_at(run.parts.retriever, run.parts.retriever.catalog[0].name, asked, (2, 5))
    run.progress.say("  ".join(f"recall@{k} {value:.3f}" for k, value in recall.items()) + f"  ({len(asked)} raw questions)")
    return {f"recall@{k}": value for k, value in recall.items()} | {"questions": len(asked)}
