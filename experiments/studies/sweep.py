"""The sweep: short trainings with one factor changed, one after the other, by Ray Tune."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

from ray import tune
from rich.console import Console

from experiments.config import TrainConfig
from experiments.datasets import Dataset
from experiments.parts import Ground
from experiments.run_asks import CPUS_PER_REWARD_ACTOR, CPUS_PER_ROLLOUT_WORKER
from experiments.stop import Stop
from experiments.studies.plan import Study, Training, sweep_parent_of
from experiments.studies.training import check_earlier, finish, folder_of, is_finished
from experiments.tracking.sweep import sweep as tracked_sweep

TRIES = 2
"""Times that Tune begins a trial again after a failure."""


class Told(tune.Callback):
    """Each end of a trial as a line on the screen."""

    def __init__(self, say: Callable[[str], None]):
        self._say = say

    def __reduce__(self) -> tuple[Any, ...]:
        """Tune keeps a copy of its settings on disk; a screen cannot be part of it."""
        return Told, (print,)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._say(f"sweep: {trial.config['point']} is trained")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._say(f"sweep: {trial.config['point']} failed; its error is in {trial.local_path}")


def run_sweep(study: Study, dataset: Dataset, policy: str, ground: Ground, say: Callable[[str], None]) -> None:
    """Train what is not trained yet. A trial that was killed goes on from its checkpoint; one that failed too often is missing afterwards."""
    left = [training for training in study.sweep if not is_finished(training)]
    if not left:
        return
    for training in left:
        check_earlier(training)
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    needs = tune.PlacementGroupFactory([{"CPU": 0.1}, *_room(study.base)])
    trial = tune.with_parameters(_trial, trainings=tuple(left), dataset=dataset, policy=policy, ground=ground, here=os.getcwd())
    tuner = tune.Tuner(
        tune.with_resources(trial, needs),
        param_space={"point": tune.grid_search([training.arm for training in left])},
        tune_config=tune.TuneConfig(metric="score", mode="max", max_concurrent_trials=1),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(study.folder.absolute()),
            failure_config=tune.FailureConfig(max_failures=TRIES),
            callbacks=[Told(say)],
            verbose=0,
        ),
    )
    with tracked_sweep(study.base.tracking, sweep_parent_of(study.base)):
        tuner.fit()


def _room(config: TrainConfig) -> list[dict[str, float]]:
    """A bundle for each rollout worker, where RLlib puts it. Ray puts all others into any of them, so each has room for all others as well: with
    less, one of them takes a worker's place, and the trial waits for ever."""
    others = config.learner.num_learners * config.learner.cpus_per_learner + config.reward.actors * CPUS_PER_REWARD_ACTOR
    return [{"CPU": CPUS_PER_ROLLOUT_WORKER + others}] * config.train.num_rollout_workers


def _trial(point: dict[str, Any], trainings: Sequence[Training], dataset: Dataset, policy: str, ground: Ground, here: str) -> None:
    """One training in a process of Tune's; its run folder is where the study looks for it."""
    os.chdir(here)
    training = next(training for training in trainings if training.arm == point["point"])
    finish(training, dataset, policy, ground, Console(quiet=True), Stop())
    found = folder_of(training).summary()
    tune.report({"score": found["best"]["score"], "turns": found["turns"], "iterations": found["iterations"]})
