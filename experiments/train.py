"""`python -m experiments.train [CONFIG.yaml] [key=value ...]`: one run, from questions to a report.

measure the start -> (roll out, score, learn, broadcast; now and then validate and save) -> measure the best -> summary, report
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from experiments.checkpoints import resume, save_checkpoint
from experiments.cluster import start_ray
from experiments.config import RunConfigError, TrainConfig, find_policy, load_config, resolved_yaml
from experiments.datasets import Dataset, load_dataset
from experiments.iteration_figures import iteration_figures
from experiments.measuring import measure_end, measure_start
from experiments.parts import Run, build_parts
from experiments.progress import Progress
from experiments.question_file import DataError
from experiments.report import write_report
from experiments.result_tables import print_results
from experiments.run_folder import RunFolder
from experiments.tally import Tally
from experiments.tracking import Tracker
from experiments.validation import keep_if_best
from retrieval_actors.knowledge_base import KnowledgeBaseError

WRONG_INPUT, STOPPED = 2, 130
"""Exit codes. A run that was stopped goes on with `train.resume=auto`."""


def train(run: Run, stop: Stop) -> None:
    """The loop. `algorithm.train()` is one iteration: push weights, roll out, score, learn."""
    settings, algorithm, tally = run.config.train, run.parts.algorithm, run.tally
    enough = settings.minutes * 60 or float("inf")
    run.progress.phase("train")
    while run.iteration < settings.iterations and tally.seconds.get("train", 0.0) < enough and not stop.asked:
        with tally.timed("train"):
            result = algorithm.train()
        row = iteration_figures(result, algorithm.trajectories, algorithm.turns)
        run.iteration = row["iteration"]
        tally.add(row)
        last = run.iteration == settings.iterations or tally.seconds["train"] >= enough
        if last or _due(run.iteration, settings.evaluate_every):
            with tally.timed("validate"):
                row |= keep_if_best(run)
        run.folder.add_metrics(row)
        run.tracker.log(row, run.iteration)
        run.progress.iteration(row, tally.seconds["train"])
        if last or stop.asked or _due(run.iteration, settings.checkpoint_every):
            with tally.timed("checkpoint"):
                save_checkpoint(run)


def whole_run(config: TrainConfig, dataset: Dataset, policy: str, console: Console) -> int:
    """Everything after the checks. Returns the exit code."""
    folder, tally = RunFolder.start(config), Tally()
    with start_ray(config), Stop() as stop, Progress(console, config.name, config.train.iterations, config.train.minutes) as progress:
        tracker = Tracker(config, folder.path, progress.say)
        with tally.timed("set_up"):
            parts = build_parts(config, dataset, policy, progress)
        run = Run(config, dataset, folder, parts, progress, tracker, tally)
        outcome = "FAILED"
        try:
            resume(run)
            measure_start(run)
            train(run, stop)
            if stop.asked:
                outcome = "KILLED"
                progress.say(f"stopped after iteration {run.iteration}; go on with train.resume=auto", style="yellow")
                return STOPPED
            measure_end(run)
            write_report(folder)
            tracker.log_results(folder.path, folder.summary(), run.iteration)
            outcome = "FINISHED"
        finally:
            tracker.finish(outcome)
            parts.close()
    print_results(console, folder.summary())
    console.print(f"report: {folder.report}", soft_wrap=True, highlight=False)
    return 0


class Stop:
    """In its `with` block SIGTERM and Ctrl-C end the training after the iteration that is going on; a second signal ends it at once.

    Entered after Ray has started: Ray installs handlers of its own.
    """

    asked = False

    def __enter__(self) -> Stop:
        self._before = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: Any) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


def check(arguments: list[str]) -> tuple[TrainConfig, Dataset, str]:
    """All that can be wrong and is cheap to see, before anything long starts. Raises RunConfigError, DataError or KnowledgeBaseError."""
    config = load_config(arguments)
    policy = find_policy(config.train.policy)
    if config.train.resume not in ("none", "auto") and not Path(config.train.resume).is_dir():
        raise RunConfigError(f"train.resume is {config.train.resume!r}; expected none, auto, or a checkpoint folder of this run")
    dataset = load_dataset(config.data, config.evaluation, config.retrieval.folders)
    for source in (*dataset.training_kbs, *dataset.evaluation_kbs):
        source.check()
    return config, dataset, policy


def _due(iteration: int, every: int) -> bool:
    return every > 0 and iteration % every == 0


def main(arguments: list[str]) -> int:
    console = Console(width=None if sys.stdout.isatty() else 120)
    try:
        config, dataset, policy = check(arguments)
    except (RunConfigError, DataError, KnowledgeBaseError) as error:
        console.print(f"error: {error}", style="red", soft_wrap=True, markup=False, highlight=False)
        return WRONG_INPUT
    console.print(resolved_yaml(config), style="dim", markup=False, highlight=False)
    return whole_run(config, dataset, policy, console)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
