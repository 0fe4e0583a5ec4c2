"""A run of every part (knowledge bases, rewards, learner, evaluation), small, in this process, in which one process is killed at a moment of one's
choice."""

from __future__ import annotations

import io
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil
from ray._private.state import actors
from read_failures import read_failures
from rich.console import Console
from tiny_turns import weights_of

from experiments.cluster.supervisor import Supervisor
from experiments.command_line.progress import Progress
from experiments.config import TrainConfig, find_policy, load_config
from experiments.datasets import load_dataset
from experiments.run.run_actors import RunActors, start_run_actors
from experiments.run.run_state import Run, Totals
from experiments.run.stop_signal import Stop
from experiments.run.training_loop import train
from experiments.tracking.mlflow_tracker import Tracker
from experiments.tracking.run_folder import RunFolder
from learner.deadline import LearnerLostError
from rollout.timeline import Timeline

ITERATIONS = 3
SETTINGS = (
    *("smoke.yaml", f"train.iterations={ITERATIONS}", "train.evaluate_every=0", "train.checkpoint_every=1", "train.keep_last=1"),
    *("evaluation.validation_questions=2", "evaluation.questions=2", "data.countries=6", "tracking.mlflow=false", "learner.lr=1e-3"),
    *("retrieval.cpus_per_shard=0.05", "retrieval.cpus_per_embedder=0.05", "learner.cpus_per_learner=0.1", "learner.deadline_s=200"),
)


@dataclass
class Pipeline:
    config: TrainConfig
    dataset: Any
    actors: RunActors
    expected: dict[str, Any] = field(default_factory=dict)
    """Of a run in which nothing happened."""

    def pid(self, role: str) -> int:
        actor = self.actors.by_role()[role]._actor_id.hex()
        end = time.monotonic() + 120
        while (row := actors(actor_id=actor))["State"] != "ALIVE":
            assert time.monotonic() < end, f"{role} did not come back: {row}"
            time.sleep(0.1)
        return row["Pid"]


def pipeline(folder: Path, *settings: str) -> Pipeline:
    """Ray has to run."""
    config = load_config([*SETTINGS, f"runs_folder={folder}", f"data.kb_folder={folder / 'kbs'}", *settings])
    dataset = load_dataset(config.data, config.evaluation, config.retrieval.folders)
    silent = Progress(Console(file=io.StringIO()), "parts", 1, 0)
    return Pipeline(config, dataset, start_run_actors(config, dataset, find_policy(config.train.policy), silent))


@contextmanager
def at_the_beginning_of(phase: str, iteration: int, supervisor: Supervisor, do: Callable[[], None]) -> Iterator[list[str]]:
    """`do` is called once, when that phase of that iteration has begun. Gives a list that then holds the phase."""
    done: list[str] = []
    real = Timeline.doing

    @contextmanager
    def doing(self: Timeline, name: str) -> Iterator[None]:
        with real(self, name):
            if not done and name == phase and supervisor.iteration == iteration:
                done.append(phase)
                do()
            yield

    Timeline.doing = doing  # type: ignore[method-assign]
    try:
        yield done
    finally:
        Timeline.doing = real  # type: ignore[method-assign]


def killed(pid: int) -> None:
    """Kills just after a whole second, which is all that Ray notes; returns when Ray, too, can have heard of it."""
    time.sleep(1.05 - time.time() % 1)
    os.kill(pid, signal.SIGKILL)
    end = time.monotonic() + 30
    while psutil.pid_exists(pid):
        assert time.monotonic() < end
        time.sleep(0.01)
    time.sleep(0.3)


@dataclass
class Outcome:
    rows: list[dict[str, Any]]
    said: str
    failures: list[dict[str, Any]]
    checksum: int
    learned: list[list[str]]
    """Of each iteration that is done the questions that were learned from."""
    seconds: float


def train_and_lose(
    whole: Pipeline,
    folder: Path,
    role: str = "",
    phase: str = "",
    iteration: int = 2,
    kill: Callable[[], None] | None = None,
    **changes: Any,
) -> Outcome:
    """`ITERATIONS` iterations from the start, and the process of this role killed at the beginning of this phase of this iteration; or what `kill`
    kills. `changes`: of the section `train`."""
    algorithm = whole.actors.algorithm
    if role and kill is None:
        kill = partial(killed, whole.pid(role))
    algorithm.learner_group.build(algorithm.learner_group.config)
    algorithm.set_state(algorithm._beginning)
    algorithm.workers.version = -1
    config = replace(whole.config, name="run", runs_folder=str(folder), train=replace(whole.config.train, **changes))
    console = Console(file=io.StringIO(), width=200)
    run_folder = RunFolder.start(config)
    began = time.monotonic()
    with Supervisor.of(run_folder.path, console) as supervisor, Progress(console, "run", ITERATIONS, 0) as progress:
        supervisor.watch(algorithm, whole.actors.by_role)
        tracker = Tracker(config, run_folder.path, progress.say)
        run = Run(config, whole.dataset, run_folder, whole.actors, progress, tracker, Totals(), supervisor)
        with at_the_beginning_of(phase, iteration, supervisor, kill or (lambda: None)) as done:
            try:
                train(run, Stop())
                supervisor.check_actors()
            except LearnerLostError as error:
                supervisor.end(error)
                algorithm.restart_learner()  # for the next one
        assert done == ([phase] if phase else [])
    seen = [run_folder.read_trajectories(f"iteration-{row['iteration']:06d}") for row in run_folder.metrics()]
    return Outcome(
        rows=run_folder.metrics(),
        said=console.file.getvalue(),  # type: ignore[attr-defined]
        failures=read_failures(run_folder.path),
        checksum=0 if len(seen) < ITERATIONS else weights_of(algorithm.learner_group).checksum,
        learned=[[row["question_id"] for row in rows] for rows in seen],
        seconds=time.monotonic() - began,
    )
