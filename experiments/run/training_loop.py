"""The training loop: iterations, validation, checkpoints, signs of collapse, and recovery from a lost learner rank."""

from __future__ import annotations

import time
from typing import Any

from experiments.run.best_policy import keep_if_best
from experiments.run.checkpoints import Checkpoints, newest_good, restore
from experiments.run.dump_and_replay import dump
from experiments.run.metrics_line import metrics_line
from experiments.run.run_state import Run
from experiments.run.stop_signal import Stop
from experiments.tracking.traces import TRAINING, trace_line
from learner.collapse import Watch
from learner.deadline import FETCH_S, LearnerLostError
from rollout.timeline import write_trace


def train(run: Run, stop: Stop) -> None:
    """Iterate until the run is over or stopped; a lost learner is restarted."""
    watch, recovery = Watch(run.config.learner.collapse, run.folder.metrics()), Recovery(run)
    run.progress.phase("train")
    with stop, Checkpoints(run) as checkpoints:
        while not stop.requested and not over(run):
            try:
                iterate(run, stop, watch, checkpoints)
            except LearnerLostError as lost:
                recovery.restart(lost, checkpoints)
                watch = Watch(run.config.learner.collapse, run.folder.metrics())


def iterate(run: Run, stop: Stop, watch: Watch, checkpoints: Checkpoints) -> None:
    """`algorithm.train()` pushes weights, rolls out, scores and learns. Then: metrics, now and then validation and a checkpoint."""
    settings, algorithm, totals = run.config.train, run.actors.algorithm, run.totals
    run.supervisor.iteration = run.iteration + 1
    with run.timed("train"):
        result = algorithm.train()
    row = metrics_line(result) | {f"retrieval_{name}": value for name, value in run.actors.retriever.stats().items()}
    run.iteration = row["iteration"]
    totals.add(row)
    totals.failures += len(run.supervisor.check_actors())
    row |= {"failed_saves": totals.failed_saves, "failures": totals.failures, "learner_restarts": totals.restarts}
    report_signs(run, watch, row, stop)
    if dropped := algorithm.data_of_iteration.dropped:
        run.warn(f"{len(dropped)} questions failed; the first: {': '.join(dropped[0])}")
    if row.get("search_errors"):
        masked = f"their episodes have no outcome, and {row['masked_turns']:.0f} turns that followed are not learned from"
        run.warn(f"{row['search_errors']:.0f} searches failed (r1-router kb status shows where): {masked}")
    if settings.trace:
        write_trace(run.folder.path / f"trace-{run.iteration:06d}.json", algorithm.timelines)
    if settings.dump_rollouts:
        dump(run.config, run.iteration, algorithm.trajectories, algorithm.turns)
    last = over(run)
    if last or (settings.evaluate_every and run.iteration % settings.evaluate_every == 0):
        with run.timed("validate"):
            row |= keep_if_best(run)
    run.folder.add_metrics(row)
    trace_first_episodes(run)
    run.tracker.update()
    run.progress.iteration(row, totals.seconds["train"])
    best = settings.keep_best and totals.best.get("iteration") == run.iteration
    if last or stop.requested or best or (settings.checkpoint_every and run.iteration % settings.checkpoint_every == 0):
        with run.timed("checkpoint"):
            checkpoints.save()
            if last or stop.requested:  # here, a lost learner can still be replaced
                checkpoints.wait()


def trace_first_episodes(run: Run) -> None:
    """A few episodes become MLflow traces. Their references are taken here, and the tracker's thread fetches what they refer to."""
    if few := run.config.tracking.traces:
        fetch, iteration, finished = run.actors.algorithm.data_of_iteration.first(few), run.iteration, time.time()

        def lines() -> list[dict[str, Any]]:
            episodes, turns = fetch(FETCH_S)
            return [trace_line(episode, TRAINING, finished, iteration, turns) for episode in episodes]

        run.tracker.trace(TRAINING, lines)


def over(run: Run) -> bool:
    """Whether the run has made its iterations, trained for its minutes, or sampled its turns or tokens."""
    settings, totals = run.config.train, run.totals
    bounds = [
        (run.iteration, settings.iterations),
        (totals.seconds.get("train", 0.0), settings.minutes * 60),
        (totals.turns, settings.turns),
    ]
    bounds.append((totals.sampled_tokens + run.dataset.gold_tokens, settings.tokens))
    return any(bound and reached >= bound for reached, bound in bounds)


def report_signs(run: Run, watch: Watch, row: dict[str, Any], stop: Stop) -> None:
    """Report new signs of collapse; `row["warnings"]` becomes the number of current ones. With `learner.collapse.stop` a sign ends the training."""
    for sign in watch.add(row):
        run.warn(f"warning, iteration {run.iteration}: {sign}")
        run.totals.warnings.append({"iteration": run.iteration, **sign._asdict()})
        if watch.config.stop:
            stop.request(f"{sign.name} is {sign.found:.4g}, threshold {sign.threshold:g} (learner.collapse.stop=true)")
    row["warnings"] = watch.standing


def how_it_stopped(run: Run, stop: Stop) -> str:
    best = run.totals.best
    kept = f"the best policy so far, of iteration {best['iteration']}, is in {run.folder.policy}" if best else "no policy was validated yet"
    why = f": {stop.reason}; {kept}" if stop.reason else ""
    return f"stopped after iteration {run.iteration}{why}; resume with train.resume=auto"


class Recovery:
    """Counts the restarts of one driver: after `train.max_restarts` the next loss ends the run."""

    def __init__(self, run: Run):
        self._run, self.restarts = run, 0

    def restart(self, lost: LearnerLostError, checkpoints: Checkpoints) -> None:
        """Restart from the newest good checkpoint; a loss during the restart counts, too. Raises the last loss after `train.max_restarts`."""
        run, before, known, most = self._run, self.restarts, self._run.totals, self._run.config.train.max_restarts
        if self.restarts < most:
            checkpoints.forget()
            good = newest_good(run.folder, run.warn)
        while True:
            if self.restarts >= most:
                raise lost
            self.restarts += 1
            where = f"from {good.name}" if good else "from the beginning, as there is no checkpoint yet"
            then = f"the learner group is restarted {where} ({self.restarts} of {most})"
            run.supervisor.report(run.supervisor.describe(lost, fatal=False, then=then))
            run.supervisor.forget("learner rank")
            try:
                with run.timed("restart_learner"):
                    run.actors.algorithm.restart_learner()
                    restore(run, good)
                break
            except LearnerLostError as again:
                lost = again
        run.totals.restarts = known.restarts + self.restarts - before
        run.totals.failures = known.failures + self.restarts - before + len(run.supervisor.check_actors())
