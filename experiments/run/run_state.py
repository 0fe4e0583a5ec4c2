"""The state of a run: configuration, actors, folder, iteration, and the totals that every checkpoint stores."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from experiments.cluster.supervisor import Supervisor
from experiments.command_line.progress import Progress
from experiments.config import TrainConfig
from experiments.datasets import Dataset
from experiments.run.run_actors import RunActors
from experiments.tracking.mlflow_tracker import Tracker
from experiments.tracking.run_folder import RunFolder


@dataclass
class Totals:
    seconds: dict[str, float] = field(default_factory=dict)  # by phase: set_up, train (and its parts train_rollout, ...), validate, ...
    turns: int = 0
    sampled_tokens: int = 0
    search_errors: int = 0
    best: dict[str, Any] = field(default_factory=dict)  # iteration, policy version and score of the best policy so far
    validated: dict[str, Any] = field(default_factory=dict)  # iteration and score of the last validation
    failed_saves: int = 0  # checkpoints and policies that could not be written
    restarts: int = 0  # of the learner group, after the loss of a rank
    failures: int = 0  # processes and nodes that were lost; each has a file in failures/ of the run folder
    warnings: list[dict[str, Any]] = field(default_factory=list)  # signs of collapse, each with the iteration in which it appeared

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self._spent(phase, time.monotonic() - began)

    def add(self, row: Mapping[str, Any]) -> None:
        """`row`: a line of metrics.jsonl."""
        self.turns += row["turns"]
        self.sampled_tokens += row["sampled_tokens"]
        self.search_errors += int(row.get("search_errors", 0))
        for key, seconds in row.items():
            if key.startswith("seconds_"):
                self._spent(f"train_{key.removeprefix('seconds_')}", seconds)

    def _spent(self, phase: str, seconds: float) -> None:
        self.seconds[phase] = self.seconds.get(phase, 0.0) + seconds


@dataclass
class Run:
    config: TrainConfig
    dataset: Dataset
    folder: RunFolder
    actors: RunActors
    progress: Progress
    tracker: Tracker
    totals: Totals
    supervisor: Supervisor
    iteration: int = 0  # iterations done

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Adds the seconds of the block to this phase; a failure in the block is reported with the phase."""
        with self.totals.timed(phase), self.supervisor.timeline.doing(phase):
            yield

    def warn(self, line: str) -> None:
        self.progress.say(line, style="yellow")
