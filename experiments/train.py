"""`python -m experiments.train [CONFIG.yaml] [key=value ...]`: one run, from questions to a report.

measure the start -> (roll out, score, learn, broadcast; now and then validate and save) -> measure the best -> summary, report
"""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console

from experiments.checkpoints import Checkpoints, resume
from experiments.cluster import start_ray
from experiments.collapse_watch import how_it_stopped, tell
from experiments.config import RunConfigError, TrainConfig, find_policy, load_config, resolved_yaml
from experiments.datasets import Dataset, load_dataset
from experiments.derived_numbers import derived_table
from experiments.dry_run import dry_run
from experiments.fingerprints import write_fingerprints
from experiments.halves import dump, dumped_iterations, learn_only, roll_out_only
from experiments.iteration_figures import iteration_figures
from experiments.measuring import measure_end, measure_start, note_stop
from experiments.parts import Run, build_parts
from experiments.progress import Progress
from experiments.question_file import DataError
from experiments.report import write_report
from experiments.result_tables import print_results
from experiments.run_folder import RunFolder
from experiments.stop import Stop
from experiments.tally import Tally
from experiments.tracking import Tracker
from experiments.validation import keep_if_best
from learner.collapse import Watch
from learner.group import MismatchError
from learner.trace import write_trace
from retrieval_actors.knowledge_base import KnowledgeBaseError
from rewards.composition import RewardError

FAILED, WRONG_INPUT, STOPPED = 1, 2, 130
"""Exit codes. A run that was stopped goes on with `train.resume=auto`."""


def train(run: Run, stop: Stop) -> None:
    """The loop. `algorithm.train()` is one iteration: push weights, roll out, score, learn."""
    settings, algorithm, tally = run.config.train, run.parts.algorithm, run.tally
    enough = settings.minutes * 60 or float("inf")
    watch = Watch(run.config.learner.collapse, run.folder.metrics())
    run.progress.phase("train")
    with Checkpoints(run) as checkpoints:
        while run.iteration < settings.iterations and tally.seconds.get("train", 0.0) < enough and not stop.asked:
            with tally.timed("train"):
                result = algorithm.train()
            row = iteration_figures(result, algorithm.trajectories, algorithm.turns)
            row["failed_saves"] = tally.failed_saves
            row |= {f"retrieval_{name}": value for name, value in run.parts.retriever.stats().items()}
            run.iteration = row["iteration"]
            tally.add(row)
            tell(run, watch, row, stop)
            if failed := [trajectory.error for trajectory in algorithm.trajectories if trajectory.error]:
                run.progress.say(f"{len(failed)} episodes failed; the first: {failed[0]}", style="yellow")
            if settings.trace:
                write_trace(run.folder.path / f"trace-{run.iteration:06d}.json", algorithm.timelines)
            dump(run.config, run.iteration, algorithm.trajectories, algorithm.turns)
            last = run.iteration == settings.iterations or tally.seconds["train"] >= enough
            if last or _due(run.iteration, settings.evaluate_every):
                with tally.timed("validate"):
                    row |= keep_if_best(run)
            run.folder.add_metrics(row)
            run.tracker.update()
            run.progress.iteration(row, tally.seconds["train"])
            best = settings.keep_best and tally.best.get("iteration") == run.iteration
            if last or stop.asked or best or _due(run.iteration, settings.checkpoint_every):
                with tally.timed("checkpoint"):
                    checkpoints.save()


def whole_run(config: TrainConfig, dataset: Dataset, policy: str, console: Console) -> int:
    """Everything after the checks. Returns the exit code."""
    folder, tally = RunFolder.start(config), Tally()
    for note in dataset.notes:
        console.print(note, style="yellow", soft_wrap=True, markup=False, highlight=False)
    with start_ray(config), Stop() as stop, Progress(console, config.name, config.train.iterations, config.train.minutes) as progress:
        tracker = Tracker(config, folder.path, progress.say)
        with tally.timed("set_up"):
            parts = build_parts(config, dataset, policy, progress)
        write_fingerprints(folder.path, config.data.name, dataset, parts.all_fingerprints())
        run = Run(config, dataset, folder, parts, progress, tracker, tally)
        outcome = "FAILED"
        try:
            resume(run)
            measure_start(run)
            train(run, stop)
            if stop.asked:
                outcome = "KILLED"
                note_stop(run)
                progress.say(how_it_stopped(run, stop), style="yellow")
                return STOPPED
            measure_end(run)
            write_report(folder)
            outcome = "FINISHED"
        finally:
            tracker.finish(outcome)
            parts.close()
    print_results(console, folder.summary())
    console.print(f"report: {folder.report}", soft_wrap=True, highlight=False)
    return 0


def check(arguments: list[str]) -> tuple[TrainConfig, Dataset | None, str]:
    """All that can be wrong and is cheap to see, before anything long starts. Raises RunConfigError, DataError or KnowledgeBaseError.

    The data set is None where recorded rollouts are learned from: they hold all that is needed.
    """
    config = load_config(arguments)
    policy = find_policy(config.train.policy)
    if config.train.resume not in ("none", "auto") and not Path(config.train.resume).is_dir():
        raise RunConfigError(f"train.resume is {config.train.resume!r}; expected none, auto, or a checkpoint folder of this run")
    if config.train.replay_rollouts:
        dumped_iterations(config.train.replay_rollouts)
        return config, None, policy
    if config.train.dump_rollouts and config.train.resume == "none" and any(Path(config.train.dump_rollouts).glob("iteration-*")):
        raise RunConfigError(f"train.dump_rollouts is {config.train.dump_rollouts!r}, which holds rollouts already; expected a new folder")
    dataset = load_dataset(config.data, config.evaluation, config.retrieval.folders)
    if not dataset.train:
        raise RunConfigError(f"data.name={config.data.name} is for evaluation only: it has no training questions")
    for source in (*dataset.training_kbs, *dataset.evaluation_kbs):
        source.check()
    return config, dataset, policy


def _due(iteration: int, every: int) -> bool:
    return every > 0 and iteration % every == 0


def main(arguments: list[str]) -> int:
    console = Console(width=None if sys.stdout.isatty() else 120)
    try:
        if (config := load_config(arguments)).train.dry_run:
            console.print(resolved_yaml(config), style="dim", markup=False, highlight=False)
            return 0 if dry_run(config, console) else WRONG_INPUT
        config, dataset, policy = check(arguments)
    except (RunConfigError, DataError, KnowledgeBaseError) as error:
        console.print(f"error: {error}", style="red", soft_wrap=True, markup=False, highlight=False)
        return WRONG_INPUT
    console.print(resolved_yaml(config), style="dim", markup=False, highlight=False)
    console.print(derived_table(config), highlight=False)
    try:
        if dataset is None:
            return learn_only(config, policy, console)
        return (roll_out_only if config.train.rollout_only else whole_run)(config, dataset, policy, console)
    except (MismatchError, RunConfigError, RewardError) as error:
        # RunConfigError: a checkpoint that is damaged, or of other knowledge bases. RewardError comes from an actor, wrapped in its traceback.
        console.print(f"error: {getattr(error, 'cause', error)}", style="red", soft_wrap=True, markup=False, highlight=False)
        return WRONG_INPUT if isinstance(error, RunConfigError) else FAILED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
