"""Runs a study: train every arm with every seed, measure every policy with every method, then the sweep by Ray Tune. Finished parts are
skipped, so the same command resumes a study that was stopped or killed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from ray import tune
from ray.exceptions import RayError

from experiments.cluster.placement import CPUS_PER_REWARD_ACTOR, CPUS_PER_ROLLOUT_WORKER
from experiments.cluster.ray_session import cpus_asked_for, start_ray
from experiments.command_line.progress import Progress
from experiments.command_line.terminal import Console
from experiments.datasets import Dataset
from experiments.evaluation.evaluate_methods import MeasuredMethod, measure, measured_methods
from experiments.evaluation.evaluation_folder import evaluation_folder
from experiments.evaluation.evaluator import EVALUATION_SEED
from experiments.run.run_actors import SharedServices, start_shared_services
from experiments.run.stop_signal import Stop
from experiments.run.whole_run import whole_run
from experiments.studies.plan import COLD_START, Study, Training, check_earlier
from experiments.studies.study_results import measured_folder, study_results, write_results
from learner.deadline import DeadlineError, LearnerLostError
from retrieval_actors.folder_lock import hold

ATTEMPTS = 3  # Attempts at each part of a study, as a busy machine may kill processes
Result = TypeVar("Result")


def run_study(study: Study, dataset: Dataset, policy: str, console: Console) -> bool:
    """Train and measure what is missing. Returns False when a signal stopped the study."""
    hold(study.folder)
    cpus, stop = study.base.ray.num_cpus or 2 * cpus_asked_for(study.base), Stop()
    with start_ray(replace(study.base, ray=replace(study.base.ray, num_cpus=cpus))):
        with Progress(console, study.base.name, 1, 0) as progress:
            services = start_shared_services(study.base, dataset, policy, progress)
        with closing(services):
            _StudyRun(study, dataset, policy, services, stop, console).run()
    return not stop.requested


class _StudyRun:
    def __init__(self, study: Study, dataset: Dataset, policy: str, services: SharedServices, stop: Stop, console: Console):
        self.study, self.dataset, self.policy, self.services, self.stop, self.console = study, dataset, policy, services, stop, console
        self.methods = measured_methods(study.base, dataset)
        self.began = time.monotonic()

    def run(self) -> None:
        for seed in self.study.settings.seeds:
            if COLD_START in self.study.settings.arms:
                self.measure(COLD_START, seed, self.policy, self.methods)
            for training in (training for training in self.study.trainings if training.seed == seed):
                work = partial(finish, training, self.dataset, self.policy, self.services, self.console, self.stop)
                done = not self.stop.requested and retried(training.name, work, self.say)
                self.say(f"{training.name}: {'trained' if done else 'not finished'}")
                if done:
                    self.measure(training.arm, seed, str(training.folder.policy), self.methods)
            if self.stop.requested:
                return
            write_results(study_results(self.study, self.dataset), self.study.folder)
        retried("the sweep", partial(run_sweep, self.study, self.dataset, self.policy, self.services, self.say), self.say)
        for training in self.study.sweep:
            if training.folder.policy.is_dir():
                self.measure(f"sweep-{training.arm}", training.seed, str(training.folder.policy), self.methods[:1])

    def measure(self, arm: str, seed: int, policy: str, methods: Sequence[MeasuredMethod]) -> None:
        """Measure the policy with `methods`. Policies of one seed get the same evaluation seed, which orders the passages."""
        evaluator, retriever = self.services.evaluator, self.services.evaluation_retriever
        evaluation = replace(self.study.base.evaluation, folder=str(measured_folder(self.study, arm, seed)))
        fingerprints = {card.name: card.fingerprint for card in retriever.catalog}
        folder = evaluation_folder(replace(self.study.base, evaluation=evaluation), policy, fingerprints, self.dataset.heldout)
        evaluator.seed = EVALUATION_SEED + seed
        with evaluator.holding(policy), Progress(Console(quiet=True), arm, 1, 0) as progress:
            for method in methods:
                if self.stop.requested:
                    return
                work = partial(measure, evaluator, method, self.dataset, retriever, folder, progress)
                retried(f"{arm}, seed {seed}, {method.name}", work, self.say)
        self.say(f"{arm}, seed {seed}: measured with {len(methods)} methods")

    def say(self, line: str) -> None:
        minutes = (time.monotonic() - self.began) / 60
        self.console.print(f"[{minutes:5.1f} min] {line}", soft_wrap=True, markup=False, highlight=False)


def finish(training: Training, dataset: Dataset, policy: str, services: SharedServices, console: Console, stop: Stop) -> bool:
    """Run the training unless it is finished. Returns whether it is finished now: `stop` ends it early."""
    check_earlier(training)
    if not training.finished:
        dataset = replace(dataset, train=dataset.train[: training.config.data.train_questions])  # an arm may train on fewer
        whole_run(training.config, dataset, policy, console, stop, services)
    return training.finished


def retried(what: str, work: Callable[[], Result], say: Callable[[str], None]) -> Result | None:
    """The result of `work`, repeated when Ray lost a process or was too slow. None after `ATTEMPTS` failures; each is reported."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return work()
        except (RayError, DeadlineError, LearnerLostError) as error:
            say(f"{what} failed, attempt {attempt} of {ATTEMPTS}: {' '.join(str(error).split())[:300]}")
    return None


def run_sweep(study: Study, dataset: Dataset, policy: str, services: SharedServices, say: Callable[[str], None]) -> None:
    """Train the points that are not trained yet, one after the other. A trial that was killed resumes from its checkpoint."""
    left = [training for training in study.sweep if not training.finished]
    if not left:
        return
    say(f"sweep: {len(left)} trainings")
    os.environ |= {"TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1", "RAY_AIR_NEW_OUTPUT": "0"}
    train_point = tune.with_parameters(_trial, trainings=tuple(left), dataset=dataset, policy=policy, services=services, here=os.getcwd())
    failures = tune.FailureConfig(max_failures=ATTEMPTS - 1)
    # A bundle for each rollout worker, as RLlib expects. Ray may put other processes into any bundle, so each bundle has room for all of them.
    # With less, one could take the place of a worker, and the trial would wait for ever.
    config = study.base
    others = config.learner.num_learners * config.learner.cpus_per_learner + config.reward.actors * CPUS_PER_REWARD_ACTOR
    bundles = [{"CPU": 0.1}, *[{"CPU": CPUS_PER_ROLLOUT_WORKER + others}] * config.train.num_rollout_workers]
    trials = tune.Tuner(
        tune.with_resources(train_point, tune.PlacementGroupFactory(bundles)),
        param_space={"point": tune.grid_search([training.arm for training in left])},
        tune_config=tune.TuneConfig(metric="score", mode="max", max_concurrent_trials=1),
        run_config=tune.RunConfig(name="tune", storage_path=str(study.folder.absolute()), failure_config=failures, verbose=0),
    ).fit()
    for trial in trials:
        if trial.error:
            say(f"sweep: {(trial.config or {}).get('point')} failed; its error is in {trial.path}")


def _trial(
    point: dict[str, Any], trainings: Sequence[Training], dataset: Dataset, policy: str, services: SharedServices, here: str
) -> None:
    """Runs in a process of Ray Tune, in the working directory `here`, as run folders are relative paths."""
    os.chdir(here)
    training = next(training for training in trainings if training.arm == point["point"])
    finish(training, dataset, policy, services, Console(quiet=True), Stop())
    tune.report({"score": training.folder.summary()["best"]["score"]})
