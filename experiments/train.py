"""`python -m experiments.train [CONFIG.yaml] [key=value ...]`: one run, from questions to a report.

measure the start -> (roll out, score, learn, broadcast; now and then validate and save) -> measure the best -> summary, report
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

from rich.console import Console

from experiments.checkpoints import Checkpoints, resume
from experiments.cluster import note_on_folders, start_ray
from experiments.collapse_watch import how_it_stopped
from experiments.config import RunConfigError, TrainConfig, find_policy, load_config, resolved_yaml
from experiments.datasets import Dataset, load_dataset
from experiments.derived_numbers import derived_table
from experiments.dry_run import dry_run
from experiments.early_report import report_so_far
from experiments.failures.roles import roles_of
from experiments.failures.supervisor import Supervisor
from experiments.fingerprints import write_fingerprints
from experiments.halves import dumped_iterations, learn_only, roll_out_only
from experiments.iteration import iterate, over
from experiments.measuring import measure_end, measure_start
from experiments.parts import Run, build_parts
from experiments.progress import Progress
from experiments.question_file import DataError
from experiments.recovery import Recovery
from experiments.report import write_report
from experiments.result_tables import print_results
from experiments.run_folder import RunFolder
from experiments.stop import Stop
from experiments.tally import Tally
from experiments.tracking import Tracker
from learner.collapse import Watch
from learner.group import MismatchError
from learner.lost_learner import LearnerLostError
from retrieval_actors.knowledge_base import KnowledgeBaseError
from rewards.composition import RewardError

FAILED, WRONG_INPUT, STOPPED = 1, 2, 130
"""Exit codes. A run that was stopped goes on with `train.resume=auto`."""
SPOKEN = (MismatchError, RunConfigError, RewardError, KnowledgeBaseError)
"""What says in one line all that there is to say."""


def train(run: Run, stop: Stop) -> None:
    """The loop, which survives the loss of a learner."""
    watch, recovery = _watch(run), Recovery(run)
    run.progress.phase("train")
    with Checkpoints(run) as checkpoints:
        while not stop.asked and not over(run):
            try:
                iterate(run, stop, watch, checkpoints)
            except LearnerLostError as lost:
                recovery.go_on(lost, checkpoints)
                watch = _watch(run)


def whole_run(config: TrainConfig, dataset: Dataset, policy: str, console: Console) -> int:
    """Everything after the checks. Returns the exit code."""
    folder, tally = RunFolder.start(config), Tally()
    for note in filter(None, (*dataset.notes, note_on_folders(config))):
        console.print(note, style="yellow", soft_wrap=True, markup=False, highlight=False)
    supervised = Supervisor.of(folder.path, console)
    with start_ray(config), supervised as supervisor, Stop() as stop, _progress(config, console) as progress:
        tracker, parts, run = Tracker(config, folder.path, progress.say), None, None
        outcome = "FAILED"
        try:
            with tally.timed("set_up"), supervisor.clock.doing("set_up"):
                parts = build_parts(config, dataset, policy, progress)
            write_fingerprints(folder.path, config.data.name, dataset, parts.all_fingerprints())
            supervisor.oversee(parts.algorithm, partial(roles_of, parts))
            run = Run(config, dataset, folder, parts, progress, tracker, tally, supervisor)
            resume(run)
            measure_start(run)
            train(run, stop)
            if stop.asked:
                outcome = "KILLED"
                progress.say(how_it_stopped(run, stop), style="yellow")
                return STOPPED
            measure_end(run)
            write_report(folder)
            outcome = "FINISHED"
        except SPOKEN:
            raise
        except Exception as error:
            supervisor.end(error)
            return FAILED
        except KeyboardInterrupt:
            outcome = "KILLED"
            supervisor.interrupted()
            return STOPPED
        finally:
            if outcome != "FINISHED":
                report_so_far(folder, run, progress.say)
            tracker.finish(outcome)
            if parts:
                parts.close()
    print_results(console, folder.summary())
    console.print(f"report: {folder.report}", soft_wrap=True, highlight=False)
    return 0


def _progress(config: TrainConfig, console: Console) -> Progress:
    return Progress(console, config.name, config.train.iterations, config.train.minutes)


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


def _watch(run: Run) -> Watch:
    return Watch(run.config.learner.collapse, run.folder.metrics())


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
    except SPOKEN as error:
        # RunConfigError: a checkpoint that is damaged, or of other knowledge bases. RewardError comes from an actor, wrapped in its traceback.
        console.print(f"error: {getattr(error, 'cause', error)}", style="red", soft_wrap=True, markup=False, highlight=False)
        return WRONG_INPUT if isinstance(error, RunConfigError) else FAILED
    except Exception as error:  # of half a run, or of a Ray that does not start: a whole run tells more
        Supervisor(Path(config.runs_folder) / config.name, console).end(error)
        return FAILED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
