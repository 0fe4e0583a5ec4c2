"""`python -m experiments.study [CONFIG.yaml] [study.key=value ...] [key=value ...]`: which way of training teaches what, measured.

Cold start only, outcome GRPO, Step-GRPO, with a cost of retrieval, one step off: at equal numbers of sampled turns, with several seeds, every
policy measured with every method on held-out questions; then a small sweep of Step-GRPO's factors. It goes on where it was stopped, and writes a
page of what came out.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import partial

from rich.console import Console

from experiments.cluster import cpus_asked_for, start_ray
from experiments.config import RunConfigError, find_policy
from experiments.datasets import Dataset, load_dataset
from experiments.evaluate import EVALUATION_SEED
from experiments.evaluation_folder import EvaluationFolder
from experiments.evaluation_progress import EvaluationProgress
from experiments.method_comparison import measure
from experiments.methods import Measured, has_gold, measured_methods
from experiments.parts import Ground, build_ground
from experiments.progress import Progress
from experiments.question_file import DataError
from experiments.stop import Stop
from experiments.studies.clock import Clock
from experiments.studies.gather import gather, write_start
from experiments.studies.page import write_page
from experiments.studies.plan import COLD_START, Study, Training, read_study
from experiments.studies.sweep import run_sweep
from experiments.studies.training import finish, folder_of, persistently
from retrieval_actors.knowledge_base import KnowledgeBaseError

WRONG_INPUT, STOPPED, UNFINISHED = 2, 130, 1
"""Exit codes. A study that was stopped goes on when the same command is given again."""


class Command:
    """A study that runs."""

    def __init__(self, study: Study, dataset: Dataset, policy: str, ground: Ground, stop: Stop, console: Console):
        self.study, self.dataset, self.policy, self.ground, self.stop, self.console = study, dataset, policy, ground, stop, console
        kbs = [source.name for source in dataset.evaluation_kbs]
        self.methods = measured_methods(study.base, kbs, has_gold(dataset.heldout))
        self.clock = Clock(study, self.say)

    def run(self) -> None:
        for seed in self.study.settings.seeds:
            if COLD_START in self.study.settings.arms:
                self.measure(COLD_START, seed, self.policy, self.methods)
            for training in self.study.trainings:
                if training.seed == seed and self.train(training):
                    self.measure(training.arm, seed, str(folder_of(training).policy), self.methods)
            if self.stop.asked:
                return
            self.write()
        if self.study.sweep:
            with self.clock.timed("sweep"):
                sweep = partial(run_sweep, self.study, self.dataset, self.policy, self.ground, self.say)
                persistently("the sweep", sweep, self.say)
        for training in self.study.sweep:
            if folder_of(training).policy.is_dir():
                self.measure(f"sweep-{training.arm}", training.seed, str(folder_of(training).policy), self.methods[:1])

    def train(self, training: Training) -> bool:
        if self.stop.asked:
            return False
        with self.clock.timed("train"):
            work = partial(finish, training, self.dataset, self.policy, self.ground, self.console, self.stop)
            return bool(persistently(training.name, work, self.say))

    def measure(self, arm: str, seed: int, policy: str, methods: list[Measured]) -> None:
        """Every policy of a seed is asked with that seed: passages stand in the same order for all of them."""
        evaluator, retriever = self.ground.evaluator, self.ground.evaluation_retriever
        place = self.study.folder / "measured" / f"{arm}-seed{seed}"
        config = replace(self.study.base, evaluation=replace(self.study.base.evaluation, folder=str(place)))
        fingerprints = {card.name: card.fingerprint for card in retriever.catalog}
        newest = place / "newest"
        folder = EvaluationFolder(config, policy, fingerprints, self.dataset.heldout, newest.read_text("utf-8") if newest.exists() else "")
        newest.write_text(folder.path.name, encoding="utf-8")
        evaluator.use(policy)
        evaluator.seed = EVALUATION_SEED + seed
        with self.clock.timed("measure" if len(methods) > 1 else "measure the sweep"), EvaluationProgress(Console(quiet=True)) as progress:
            for method in methods:
                if self.stop.asked:
                    return
                work = partial(measure, evaluator, method, self.dataset, retriever, folder, progress)
                persistently(f"{arm}, seed {seed}, {method.name}", work, self.say)
        self.say(f"{arm}, seed {seed}: measured with {len(methods)} methods")

    def write(self) -> None:
        write_page(gather(self.study, self.dataset), self.study.page)

    def say(self, line: str) -> None:
        self.console.print(f"[{self.clock.elapsed() / 60:5.1f} min] {line}", soft_wrap=True, markup=False, highlight=False)


def start(study: Study, dataset: Dataset, ground: Ground) -> None:
    """Write down where and when this is measured, and where the curves begin; a study that goes on knows."""
    if not (study.folder / "start.json").exists():
        found = ground.evaluator.run(dataset.validation, ground.evaluation_retriever).overall()
        write_start(study, {name: interval.value for name, interval in found.items() if interval.value == interval.value})


def check(arguments: list[str]) -> tuple[Study, Dataset, str]:
    """Raises RunConfigError, DataError or KnowledgeBaseError before anything long starts."""
    study = read_study(arguments)
    policy = find_policy(study.base.train.policy)
    dataset = load_dataset(study.base.data, study.base.evaluation, study.base.retrieval.folders)
    if study.base.rollout.mode == "offline":
        raise RunConfigError("rollout.mode is offline; a study compares ways to retrieve, expected branch or chain")
    if not dataset.train:
        raise RunConfigError(f"data.name={study.base.data.name} is for evaluation only: it has no training questions")
    for source in (*dataset.training_kbs, *dataset.evaluation_kbs):
        source.check()
    return study, dataset, policy


def main(arguments: list[str]) -> int:
    console = Console(width=None if sys.stdout.isatty() else 140)
    try:
        study, dataset, policy = check(arguments)
    except (RunConfigError, DataError, KnowledgeBaseError) as error:
        console.print(f"error: {error}", style="red", soft_wrap=True, markup=False, highlight=False)
        return WRONG_INPUT
    if not study.settings.render_only:
        cpus = study.base.ray.num_cpus or 2 * cpus_asked_for(study.base)
        with start_ray(replace(study.base, ray=replace(study.base.ray, num_cpus=cpus))), Stop() as stop:
            with Progress(console, study.base.name, 1, 0) as progress:
                ground = build_ground(study.base, dataset, policy, progress)
            start(study, dataset, ground)
            command = Command(study, dataset, policy, ground, stop, console)
            try:
                command.run()
            except RunConfigError as error:
                console.print(f"error: {error}", style="red", soft_wrap=True, markup=False, highlight=False)
                return WRONG_INPUT
            finally:
                command.write()
                ground.close()
            if stop.asked:
                command.say("stopped; the same command goes on from here")
                return STOPPED
    results = gather(study, dataset)
    page = write_page(results, study.page)
    console.print(f"page: {page}", soft_wrap=True, highlight=False)
    return UNFINISHED if results["missing"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
