"""Which policy is kept: the one that does best on questions that are neither trained on nor reported."""

from __future__ import annotations

import shutil

from experiments.checkpoints import note_failed_save
from experiments.measures import Interval
from experiments.parts import Run
from rollout.weights import PublishedWeights

CHOSEN_BY = ("f1_recall", "routing_accuracy", "format_rate")
"""The first of these that could be measured decides; of equals the later policy is kept, as it has learned longer."""


def keep_if_best(run: Run) -> dict[str, float]:
    """Measure the policy as it is now, and save it to `policy/` if none was better. Returns `validation_...` figures."""
    figures: dict[str, Interval] = {}
    if run.dataset.validation:
        run.progress.phase("validate")
        learner, evaluator = run.parts.algorithm.learner_group, run.parts.evaluator
        with evaluator.holding(PublishedWeights(tuple(learner.publish()), learner.policy_version)):
            figures = evaluator.run(run.dataset.validation, run.parts.evaluation_retriever, progress=run.progress).overall()
        run.progress.phase("train")
    known = {name: interval.value for name, interval in figures.items() if interval.value == interval.value}
    score = next((known[name] for name in CHOSEN_BY if name in known), 0.0)
    run.tally.validated = {"iteration": run.iteration, "score": score}
    if not run.tally.best or score >= run.tally.best["score"]:
        try:
            save_policy(run)
        except OSError as error:
            note_failed_save(run, f"the policy of iteration {run.iteration}", error)
        else:
            run.tally.best = {"iteration": run.iteration, "policy_version": run.parts.algorithm.policy_version, "score": score}
    return {f"validation_{name}": value for name, value in known.items()}


def save_policy(run: Run) -> None:
    """Written aside and renamed: a kill leaves the earlier policy or the new one."""
    policy = run.folder.policy
    aside, old = policy.with_name("policy.new"), policy.with_name("policy.old")
    for leftover in (aside, old):
        shutil.rmtree(leftover, ignore_errors=True)
    run.parts.algorithm.learner_group.save_policy(aside)
    if policy.exists():
        policy.rename(old)
    aside.rename(policy)
    shutil.rmtree(old, ignore_errors=True)
