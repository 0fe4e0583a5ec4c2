"""A whole run: start or resume it, measure, train, measure, report."""

from rich.console import Console

from experiments.cluster.ray_session import start_ray
from experiments.cluster.supervisor import Supervisor
from experiments.command_line.entry_point import FAILED, ONE_LINE_ERRORS, STOPPED
from experiments.command_line.progress import Progress
from experiments.config import TrainConfig
from experiments.datasets import Dataset
from experiments.evaluation.result_tables import print_results
from experiments.report.report_page import write_report
from experiments.run.checkpoints import resume
from experiments.run.measure_before_and_after import measure_end, measure_start, report_so_far, write_summary
from experiments.run.opening import next_commands
from experiments.run.run_actors import SharedServices, start_run_actors, with_gold
from experiments.run.run_state import Run, Totals
from experiments.run.stop_signal import Stop
from experiments.run.training_loop import how_it_stopped, train
from experiments.tracking.fingerprints import write_fingerprints
from experiments.tracking.mlflow_tracker import Tracker
from experiments.tracking.run_folder import RunFolder


def whole_run(
    config: TrainConfig,
    dataset: Dataset,
    policy: str,
    console: Console,
    stop: Stop,
    shared: SharedServices | None = None,
    verbose: bool = False,
) -> int:
    """Returns the exit code. `shared`: services of a study, which measures the policies itself; errors are then raised."""
    folder, totals, run, actors, outcome = RunFolder.start(config), Totals(), None, None, "FAILED"
    for note in () if shared else dataset.notes:
        console.print(note, style="yellow", soft_wrap=True)
    shown = Progress(console, config.name, config.train.iterations, config.train.minutes, verbose)
    with start_ray(config), Supervisor.of(folder.path, console) as supervisor, shown as progress:
        tracker = Tracker(config, folder.path, progress.say)
        try:
            with totals.timed("set_up"), supervisor.timeline.doing("set_up"):
                actors = start_run_actors(config, dataset, policy, progress, shared)
                dataset = with_gold(config, dataset, policy, actors, progress)
            catalogs = {"training": actors.retriever.catalog, "evaluation": actors.evaluation_retriever.catalog}
            write_fingerprints(folder.path, config.data.name, dataset, catalogs)
            supervisor.watch(actors.algorithm, actors.by_role)
            run = Run(config, dataset, folder, actors, progress, tracker, totals, supervisor)
            resume(run)
            if not shared:
                measure_start(run)
            train(run, stop)
            if shared:
                write_summary(run)
            elif stop.requested:
                run.warn(how_it_stopped(run, stop))
            else:
                measure_end(run)
                write_report(folder)
            outcome = "KILLED" if stop.requested else "FINISHED"
        except KeyboardInterrupt:
            outcome = "KILLED"
            raise
        except Exception as error:
            if shared or isinstance(error, ONE_LINE_ERRORS):
                raise
            supervisor.end(error)
            return FAILED
        finally:
            if shared or outcome != "FINISHED":
                report_so_far(folder, None if shared else run, progress.say)
            tracker.finish(outcome)
            if actors:
                actors.close()
    if stop.requested:
        return STOPPED
    if not shared:
        print_results(console, folder.summary())
        console.print(next_commands(folder), soft_wrap=True)
    return 0
