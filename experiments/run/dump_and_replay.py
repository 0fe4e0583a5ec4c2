"""Rollouts without learning, and learning from recorded rollouts:
python -m experiments.train laptop.yaml train.rollout_only=true train.dump_rollouts=rollouts train.iterations=5
python -m experiments.train laptop.yaml train.replay_rollouts=rollouts
"""

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from experiments.cluster.placement import placed_or_refused
from experiments.cluster.ray_session import start_ray
from experiments.command_line.progress import Progress
from experiments.config import RunConfigError, TrainConfig
from experiments.datasets import Dataset
from experiments.run.measure_before_and_after import run_facts
from experiments.run.metrics_line import metrics_line
from experiments.run.run_actors import start_run_actors, with_gold
from experiments.run.run_state import Totals
from experiments.run.stop_signal import Stop
from experiments.tracking.mlflow_tracker import Tracker
from experiments.tracking.run_folder import RunFolder
from learner.iteration_data import reward_metrics, rollout_metrics
from learner.learner_group import LearnerGroup
from rewards.scored_summary import ScoredSummary
from rollout.record_files import read_rollouts, write_rollouts
from rollout.records import ScoredTurn, Trajectory
from rollout.trajectory_summary import summary_of


def dump(config: TrainConfig, iteration: int, trajectories: Sequence[Trajectory], turns: Sequence[ScoredTurn]) -> None:
    """Write the rollouts of an iteration into `train.dump_rollouts`; a resumed run overwrites iterations."""
    place = Path(config.train.dump_rollouts) / f"iteration-{iteration:06d}"
    shutil.rmtree(place, ignore_errors=True)
    write_rollouts(place, trajectories, turns)


def dumped_iterations(folder: str) -> list[Path]:
    """The iteration folders that `dump` wrote, in order. Raises RunConfigError when there is none."""
    if found := sorted(Path(folder).glob("iteration-??????")):
        return found
    raise RunConfigError(f"train.replay_rollouts is {folder!r}: no iteration-000001, ... there; expected what train.dump_rollouts wrote")


class PartialRun:
    def __init__(self, config: TrainConfig, progress: Progress):
        self.config, self.progress = config, progress
        self.folder, self.totals, self.iteration = RunFolder.start(config), Totals(), 0
        self.tracker = Tracker(config, self.folder.path, progress.say)

    def add(self, **measured: Mapping[str, float]) -> None:
        """One more iteration. `measured`: `rollout`, `reward`, `learner` and `seconds`, as `StepGRPO.train` returns them."""
        self.iteration += 1
        row = metrics_line({"training_iteration": self.iteration, **measured})
        self.totals.add(row)
        self.folder.add_metrics(row)
        self.tracker.update()
        self.progress.iteration(row, sum(self.totals.seconds.values()))

    def finish(self, policy_version: int) -> None:
        self.folder.write_summary(run_facts(self.config, self.totals, self.iteration, policy_version))
        self.tracker.finish()


def roll_out_only(config: TrainConfig, dataset: Dataset, policy: str, console: Console) -> int:
    """Roll out the questions of `train.iterations` iterations, all with the initial policy. Returns the exit code."""
    with start_ray(config), Progress(console, config.name, config.train.iterations, 0) as progress:
        run, actors = PartialRun(config, progress), start_run_actors(config, dataset, policy, progress)
        algorithm, deadline_s = actors.algorithm, config.learner.deadline_s
        try:
            with_gold(config, dataset, policy, actors, progress)
            algorithm.push_weights()
            progress.phase("train")
            with Stop() as stop:
                while run.iteration < config.train.iterations and not stop.requested:
                    began = time.monotonic()
                    made = algorithm.gather(learned_at=run.iteration)  # part of the seed, so that iterations sample differently
                    algorithm.questions.settle(made.asked)
                    seconds = {"rollout": time.monotonic() - began}
                    run.add(rollout=rollout_metrics(made.summaries), reward=reward_metrics(made.turns.summary), seconds=seconds)
                    if config.train.dump_rollouts:
                        dump(config, run.iteration, made.fetch_trajectories(deadline_s), made.turns.fetch(deadline_s))
        finally:
            actors.close()
        run.finish(policy_version=0)
    return 0


def learn_only(config: TrainConfig, policy: str, console: Console) -> int:
    """Learn from recorded rollouts, in order. With the policy and settings of the recorded run the result is the same, bit for bit."""
    recorded = dumped_iterations(config.train.replay_rollouts)[: config.train.iterations]
    first, turns = read_rollouts(recorded[0])
    if config.learner.routes == "all" and not any(turn.route_rewards for turn in turns):
        raise RunConfigError(f"learner.routes is 'all', but {recorded[0]} holds no routes; roll out again with it, or set it to sampled")
    if config.rollout.mode == "chain" and any(len(group.turns) > 1 for trajectory in first for group in trajectory.groups):
        raise RunConfigError(f"rollout.mode is 'chain', but {recorded[0]} holds siblings; expected the mode that it was rolled out in")
    with start_ray(config), Progress(console, config.name, len(recorded), 0) as progress:
        run, placed = PartialRun(config, progress), placed_or_refused(config, None, progress)
        progress.phase("start learner")
        learner = LearnerGroup(replace(placed.learner, seed=config.train.seed), policy)
        progress.phase("train")
        with Stop() as stop:
            for place in recorded:
                trajectories, turns = read_rollouts(place)
                learned = learner.update(turns)
                rollout, reward = rollout_metrics([summary_of(t) for t in trajectories]), reward_metrics(ScoredSummary.of(turns))
                run.add(rollout=rollout, reward=reward, learner=learned, seconds={"learn": learned["seconds"]})
                if stop.requested:
                    break
        learner.save_policy(run.folder.policy)
        run.finish(learner.policy_version)
        learner.shutdown()
    console.print(f"policy: {run.folder.policy}", soft_wrap=True, highlight=False)
    return 0
