"""One iteration of a run: learn, look what came of it, tell, and now and then validate and save."""

from __future__ import annotations

from experiments.checkpoints import Checkpoints
from experiments.collapse_watch import tell
from experiments.halves import dump
from experiments.iteration_figures import iteration_figures
from experiments.parts import Run
from experiments.stop import Stop
from experiments.validation import keep_if_best
from learner.collapse import Watch
from learner.trace import write_trace


def iterate(run: Run, stop: Stop, watch: Watch, checkpoints: Checkpoints) -> None:
    """`algorithm.train()` is one iteration: push weights, roll out, score, learn. What comes of it is measured, told and saved."""
    settings, algorithm, tally = run.config.train, run.parts.algorithm, run.tally
    run.supervisor.begin(run.iteration + 1)
    with run.timed("train"):
        result = algorithm.train()
    row = iteration_figures(result, algorithm.trajectories, algorithm.turns)
    row |= {f"retrieval_{name}": value for name, value in run.parts.retriever.stats().items()}
    run.iteration = row["iteration"]
    tally.add(row)
    tally.failures += len(run.supervisor.look())
    row |= {"failed_saves": tally.failed_saves, "failures": tally.failures, "learner_restarts": tally.restarts}
    tell(run, watch, row, stop)
    if dropped := algorithm.dropped:
        run.progress.say(f"{len(dropped)} questions failed; the first: {': '.join(dropped[0])}", style="yellow")
    if settings.trace:
        write_trace(run.folder.path / f"trace-{run.iteration:06d}.json", algorithm.timelines)
    dump(run.config, run.iteration, algorithm.trajectories, algorithm.turns)
    last = over(run)
    if last or _due(run.iteration, settings.evaluate_every):
        with run.timed("validate"):
            row |= keep_if_best(run)
    run.folder.add_metrics(row)
    run.tracker.update()
    run.progress.iteration(row, tally.seconds["train"])
    best = settings.keep_best and tally.best.get("iteration") == run.iteration
    if last or stop.asked or best or _due(run.iteration, settings.checkpoint_every):
        with run.timed("checkpoint"):
            checkpoints.save()
            if last or stop.asked:  # while a lost learner can still be replaced
                checkpoints.wait()


def over(run: Run) -> bool:
    """Whether the run has made its iterations, trained for its minutes, or sampled its turns."""
    settings, tally = run.config.train, run.tally
    bounds = [
        (run.iteration, settings.iterations),
        (tally.seconds.get("train", 0.0), settings.minutes * 60),
        (tally.turns, settings.turns),
    ]
    return any(bound and reached >= bound for reached, bound in bounds)


def _due(iteration: int, every: int) -> bool:
    return every > 0 and iteration % every == 0
