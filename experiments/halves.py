"""Half a run: rollouts without learning, or learning without rollouts, so that either half can be worked on alone.

python -m experiments.train laptop.yaml train.rollout_only=true train.dump_rollouts=rollouts train.iterations=5
python -m experiments.train laptop.yaml train.replay_rollouts=rollouts
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

from rich.console import Console

from experiments.cluster import start_ray
from experiments.config import RunConfigError, TrainConfig
from experiments.datasets import Dataset
from experiments.iteration_figures import iteration_figures
from experiments.parts import build_parts
from experiments.placement_table import placed_or_refused
from experiments.progress import Progress
from experiments.provenance import git_commit, machine
from experiments.run_folder import RunFolder
from experiments.stop import Stop
from experiments.tally import Tally
from experiments.tracking import Tracker
from learner.group import LearnerGroup
from learner.iteration_metrics import reward_metrics, rollout_metrics
from rollout.record_files import read_rollouts, write_rollouts
from rollout.records import ScoredTurn, Trajectory


def dump(config: TrainConfig, iteration: int, trajectories: Sequence[Trajectory], turns: Sequence[ScoredTurn]) -> None:
    """Where `train.dump_rollouts` asks for it, write what an iteration rolled out; a resumed run writes an iteration again."""
    if config.train.dump_rollouts:
        place = Path(config.train.dump_rollouts) / f"iteration-{iteration:06d}"
        shutil.rmtree(place, ignore_errors=True)
        write_rollouts(place, trajectories, turns)


def dumped_iterations(folder: str) -> list[Path]:
    """The iterations in a folder that `dump` wrote, in their order. Raises RunConfigError when there is none."""
    found = sorted(Path(folder).glob("iteration-??????"))
    if not found:
        raise RunConfigError(
            f"train.replay_rollouts is {folder!r}: no iteration-000001, ... there; expected what train.dump_rollouts wrote"
        )
    return found


class HalfRun:
    """What both halves write: the run folder, the screen, the tracker."""

    def __init__(self, config: TrainConfig, progress: Progress):
        self.config, self.progress = config, progress
        self.folder, self.tally = RunFolder.start(config), Tally()
        self.tracker = Tracker(config, self.folder.path, progress.say)
        self.iteration = 0

    def add(self, trajectories: Sequence[Trajectory], turns: Sequence[ScoredTurn], **measured: Mapping[str, float]) -> None:
        """One more iteration. `measured`: `learner` and `seconds`, as `StepGRPO.train` returns them."""
        self.iteration += 1
        result = {
            "training_iteration": self.iteration,
            "rollout": rollout_metrics(trajectories),
            "reward": reward_metrics(turns),
            **measured,
        }
        row = iteration_figures(result, trajectories, turns)
        self.tally.add(row)
        self.folder.add_metrics(row)
        self.tracker.update()
        self.progress.iteration(row, sum(self.tally.seconds.values()))

    def finish(self, policy_version: int) -> None:
        self.folder.write_summary(
            {
                "name": self.config.name,
                "iterations": self.iteration,
                "policy_version": policy_version,
                "seconds": {phase: round(seconds, 2) for phase, seconds in self.tally.seconds.items()},
                "turns": self.tally.turns,
                "sampled_tokens": self.tally.sampled_tokens,
                "git_commit": git_commit(),
                "machine": machine(),
                "config": asdict(self.config),
            }
        )
        self.tracker.finish()


@contextmanager
def half_run(config: TrainConfig, console: Console, iterations: int) -> Iterator[tuple[HalfRun, Stop]]:
    with start_ray(config), Stop() as stop, Progress(console, config.name, iterations, 0) as progress:
        yield HalfRun(config, progress), stop


def roll_out_only(config: TrainConfig, dataset: Dataset, policy: str, console: Console) -> int:
    """`train.iterations` times the questions of an iteration, all by the policy that training would start from. Returns the exit code."""
    with half_run(config, console, config.train.iterations) as (run, stop):
        parts = build_parts(config, dataset, policy, run.progress)
        algorithm = parts.algorithm
        try:
            algorithm.push_weights()
            run.progress.phase("train")
            while run.iteration < config.train.iterations and not stop.asked:
                began = time.monotonic()
                made = algorithm.gather(learned_at=algorithm.policy_version)
                algorithm.questions.settle(made.asked)
                run.add(made.trajectories, made.turns, seconds={"rollout": time.monotonic() - began})
                dump(config, run.iteration, made.trajectories, made.turns)
        finally:
            parts.close()
        run.finish(policy_version=0)
    return 0


def learn_only(config: TrainConfig, policy: str, console: Console) -> int:
    """Learn from recorded rollouts in their order, as if they had just been sampled. Returns the exit code.

    With the policy and the settings that they were recorded with, the result is that of the recorded run, bit for bit.
    """
    recorded = dumped_iterations(config.train.replay_rollouts)[: config.train.iterations]
    with half_run(config, console, len(recorded)) as (run, stop):
        placed, _ = placed_or_refused(config, None, run.progress.console)
        run.progress.phase("start learner")
        learner = LearnerGroup(replace(placed.learner, seed=config.train.seed), policy)
        run.progress.phase("train")
        for place in recorded:
            trajectories, turns = read_rollouts(place)
            learned = learner.update(turns)
            run.add(trajectories, turns, learner=learned, seconds={"learn": learned["seconds"]})
            if stop.asked:
                break
        learner.save_policy(run.folder.policy)
        run.finish(learner.policy_version)
        learner.shutdown()
    console.print(f"policy: {run.folder.policy}", soft_wrap=True, highlight=False)
    return 0
