"""The measurements around training (before, after, and other ways of routing, all on the same held-out questions), and `summary.json`."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

from experiments.config import TrainConfig
from experiments.evaluation.evaluate_methods import routable
from experiments.evaluation.evaluator import Evaluation
from experiments.evaluation.gaps import ceiling, find_gaps, search_everywhere
from experiments.evaluation.significance import Interval, paired_difference
from experiments.report.report_page import write_report
from experiments.run.run_state import Run, Totals
from experiments.tracking.fingerprints import git_commit, machine
from experiments.tracking.run_folder import RunFolder
from experiments.tracking.traces import EVALUATED, trace_line
from learner.deadline import results
from rollout.records import Question


def measure_start(run: Run) -> None:
    """Measure the initial policy, unless the summary of a resumed run has the result."""
    if "before" in run.folder.summary():
        return
    write_summary(run, before=measure(run, "before").summary())


def measure_end(run: Run) -> None:
    """The best policy on the questions that the start was measured on, the paired difference, and the other ways of routing."""
    config = run.config.evaluation
    with run.actors.evaluator.holding(str(run.folder.policy)):
        after = measure(run, "after")
        before_counts = [row["counts"] for row in run.folder.read_trajectories("before")]
        found = {"after": after.summary(), "difference": paired_difference(before_counts, after.counts)}
        found["ceiling"] = retrieval_ceiling(run, after)
        found["baselines"] = measure_baselines(run, "after", config.baselines)
    write_summary(run, **found, start_baselines=measure_baselines(run, "before", config.start_baselines))


def measure(run: Run, when: str) -> Evaluation:
    """The evaluator's policy on the held-out questions. Writes the episodes with their rewards."""
    actors, heldout, gold, detail = run.actors, run.dataset.heldout, run.dataset.gold_passages, run.progress.detail
    with run.timed(f"evaluate_{when}"):
        run.progress.phase(f"evaluate {when}")
        evaluation = actors.evaluator.run(heldout, actors.evaluation_retriever, progress=detail, gold_passages=gold)
    made = evaluation.trajectories
    with run.totals.timed("score_heldout"):
        call = actors.reward_actors[0].score.remote(made)
        (turns,) = results([call], f"the rewards of {len(made)} trajectories", run.config.learner.deadline_s)
    calibration = run.config.reward.need_calibration
    few, finished = made[: EVALUATED * run.config.tracking.traces], time.time()
    run.tracker.trace(when, lambda: [trace_line(episode, when, finished, run.iteration, turns) for episode in few])
    run.folder.write_trajectories(when, made, evaluation.counts, turns, (), actors.evaluation_folders, calibration)
    return evaluation


def retrieval_ceiling(run: Run, measured: Evaluation) -> Interval:
    """Share of the held-out questions whose answer stands in a passage that a search finds; empty in `offline` mode."""
    questions = [item for item in run.dataset.heldout if isinstance(item, Question)]
    if not questions:
        return {}
    with run.timed("ceiling"):
        run.progress.phase("ceiling of retrieval")
        found = search_everywhere(questions, run.actors.evaluation_retriever, run.config.rollout.passages)
    return ceiling(questions, find_gaps(questions, found, {t.question.id: t for t in measured.trajectories}))


def measure_baselines(run: Run, when: str, routings: list[str]) -> dict[str, Any]:
    """Routing -> summary, of the evaluator's policy on the held-out questions."""
    actors, heldout, gold, detail = run.actors, run.dataset.heldout, run.dataset.gold_passages, run.progress.detail
    found = {}
    with run.timed("baselines"):
        for routing in routable(routings, heldout):
            run.progress.phase(f"evaluate {when}, routing: {routing}")
            found[routing] = actors.evaluator.run(heldout, actors.evaluation_retriever, routing, detail, gold).summary()
    return found


def write_summary(run: Run, **measured: Any) -> None:
    """`measured`: new results (`before`, `after`, `difference`, `baselines`, ...). Stored results of the start are kept."""
    totals = run.totals
    known = {key: value for key, value in run.folder.summary().items() if key in ("before", "start_baselines")}
    counted = {name: getattr(totals, name) for name in ("best", "warnings", "failed_saves", "search_errors")}
    facts = run_facts(run.config, totals, run.iteration, run.actors.algorithm.policy_version) | {"gold_tokens": run.dataset.gold_tokens}
    run.folder.write_summary({**facts, **known, **measured, **counted, "tracking_failures": run.tracker.failures})


def run_facts(config: TrainConfig, totals: Totals, iterations: int, policy_version: int) -> dict[str, Any]:
    facts = {"name": config.name, "iterations": iterations, "policy_version": policy_version}
    facts |= {"seconds": {phase: round(seconds, 2) for phase, seconds in totals.seconds.items()}, "turns": totals.turns}
    facts |= {"sampled_tokens": totals.sampled_tokens, "finished": time.time(), "git_commit": git_commit(), "machine": machine()}
    return facts | {"config": dataclasses.asdict(config)}


def report_so_far(folder: RunFolder, run: Run | None, say: Callable[..., None]) -> None:
    """Write the report so far, if there are iterations; raises nothing. `run`: None leaves the summary as it is."""
    try:
        if run is not None:
            write_summary(run)
        if folder.metrics():
            write_report(folder)
            say(f"report so far: {folder.report}")
    except Exception as error:
        say(f"warning: the report was not written: {type(error).__name__}: {' '.join(str(error).split())[:200]}", style="yellow")
