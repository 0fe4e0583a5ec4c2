"""Chooses the best policy by validation questions, which are neither trained on nor reported."""

from __future__ import annotations

from experiments.evaluation.confidence import fitted
from experiments.evaluation.evaluation_folder import failures_of
from experiments.evaluation.result_tables import failure_warnings
from experiments.evaluation.significance import Interval, summarise
from experiments.run.checkpoints import note_failed_save
from experiments.run.run_state import Run
from rollout.confidence import Calibration, write_calibration
from rollout.weight_buckets import PublishedWeights

CHOSEN_BY = ("f1_recall", "routing_accuracy", "format_rate")  # the first of them that was measured decides


def keep_if_best(run: Run) -> dict[str, float]:
    """Measure the current policy, and save it to `policy/` unless an earlier one was better. Returns the `validation_...` metrics."""
    figures, measured = dict[str, Interval](), 1.0
    calibration: Calibration | None = None
    if run.dataset.validation:
        run.progress.phase("validate")
        learner, evaluator = run.actors.algorithm.learner_group, run.actors.evaluator
        with evaluator.holding(PublishedWeights(tuple(learner.publish()), learner.policy_version)):
            evaluation = evaluator.run(run.dataset.validation, run.actors.evaluation_retriever, progress=run.progress.detail)
        figures, calibration = summarise(evaluation.counts), fitted(evaluation.trajectories, evaluation.counts)
        measured = sum(map(bool, evaluation.counts)) / max(1, len(evaluation.counts))
        for line in failure_warnings({"validation": failures_of(evaluation.trajectories)}):
            run.progress.say(line, style="yellow")
        run.progress.phase("train")
    known = {name: found["value"] for name, found in figures.items() if found["value"] == found["value"]}
    # Questions that could not be measured count as wrong, so that a few lucky questions cannot decide.
    score = measured * next((known[name] for name in CHOSEN_BY if name in known), 0.0)
    run.totals.validated = {"iteration": run.iteration, "score": score}
    if not run.totals.best or score >= run.totals.best["score"]:
        try:
            run.actors.algorithm.learner_group.save_policy(run.folder.policy)
        except OSError as error:
            note_failed_save(run, f"the policy of iteration {run.iteration}", error)
        else:
            write_calibration(run.folder.policy, calibration)
            run.totals.best = {"iteration": run.iteration, "policy_version": run.actors.algorithm.policy_version, "score": score}
    return {f"validation_{name}": value for name, value in known.items()} | ({"validation_measured": measured} if measured < 1 else {})
