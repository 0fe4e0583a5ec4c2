"""The folder of a run: what it was told, what it measured, what it learned.

config.yaml           every setting
metrics.jsonl         a line for each iteration
summary.json          before, after, baselines, seconds by phase
trajectories/         Parquet files: whole episodes, step by step, with the siblings of every turn; pictures/ of their passages
checkpoints/          iteration-000020/, ...: what resume=auto goes on from
policy/               the best policy, in Hugging Face format
report.html           all of it to look at
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from experiments.config import RunConfigError, TrainConfig, load_config, resolved_yaml
from experiments.failures.driver_file import live_driver
from experiments.passage_pictures import Pictures
from experiments.trajectory_rows import NO_PICTURES, PICTURE_SCHEMA, TRAJECTORY_SCHEMA, picture_rows, sibling_groups, trajectory_row
from rollout.records import ScoredTurn, Trajectory

COMPLETE = "complete.json"
"""Stands in every checkpoint that was written to its end; holds the iteration."""


DEPTH = 3
"""Of runs/: RUN, STUDY/RUN, STUDY/sweep/RUN."""


def run_folders(parent: Path, depth: int = DEPTH) -> list[Path]:
    """Every run folder at most so deep below `parent`, sorted; what lies within a run folder is not looked at."""
    found: list[Path] = []
    for path in sorted(parent.iterdir()) if parent.is_dir() else []:
        if (path / "config.yaml").is_file():
            found.append(path)
        elif depth > 1 and path.is_dir():
            found += run_folders(path, depth - 1)
    return found


@dataclass(frozen=True)
class RunFolder:
    path: Path

    @classmethod
    def start(cls, config: TrainConfig) -> RunFolder:
        """The folder of this run, made if need be. Unless it is resumed, an earlier run of that name steps aside: its time becomes its name.

        Raises RunConfigError where another process still drives the run."""
        folder = cls(Path(config.runs_folder) / config.name)
        if driver := live_driver(folder.path):
            raise RunConfigError(
                f"{folder.path} is still driven by {driver}; expected a run that nobody drives: end that process and wait until it has saved "
                "(SIGTERM, or ray job stop), or give this run another name=..."
            )
        earlier = folder.path / "config.yaml"
        if config.train.resume == "none" and earlier.exists():
            began = datetime.fromtimestamp(earlier.stat().st_mtime)
            folder.path.rename(folder.path.with_name(f"{config.name}-{began:%Y%m%d-%H%M%S}"))
        for part in (folder.path, folder.trajectories, folder.checkpoints):
            part.mkdir(parents=True, exist_ok=True)
        (folder.path / "config.yaml").write_text(resolved_yaml(config), encoding="utf-8")
        return folder

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """Raises RunConfigError for a folder that no run has written."""
        path = Path(path)
        if not (path / "config.yaml").is_file():
            raise RunConfigError(f"{path}: no run folder (config.yaml is missing); give the folder of a run, such as runs/laptop")
        return cls(path)

    @property
    def trajectories(self) -> Path:
        return self.path / "trajectories"

    @property
    def pictures(self) -> Path:
        return self.trajectories / "pictures"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def policy(self) -> Path:
        return self.path / "policy"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    def config(self) -> TrainConfig:
        return load_config([str(self.path / "config.yaml")])

    # Metrics and summary

    def add_metrics(self, row: dict[str, Any]) -> None:
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(_plain(row)) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """The lines so far; a last line that a kill cut short is left out."""
        file = self.path / "metrics.jsonl"
        lines = file.read_text(encoding="utf-8").split("\n") if file.exists() else []
        return [json.loads(line) for line in lines[:-1] if line]

    def forget_after(self, iteration: int) -> None:
        """Drop the metrics of later iterations: a resumed run will write them again."""
        kept = [row for row in self.metrics() if row["iteration"] <= iteration]
        aside = self.path / "metrics.jsonl.new"
        aside.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
        aside.replace(self.path / "metrics.jsonl")

    def write_summary(self, summary: dict[str, Any]) -> None:
        aside = self.path / "summary.json.new"
        aside.write_text(json.dumps(_plain(summary), indent=2) + "\n", encoding="utf-8")
        aside.replace(self.path / "summary.json")

    def summary(self) -> dict[str, Any]:
        """Empty until something was summarised."""
        file = self.path / "summary.json"
        return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}

    # Trajectories

    def write_trajectories(
        self,
        name: str,
        trajectories: Sequence[Trajectory],
        counts: Sequence[dict[str, Any]] = (),
        turns: Sequence[ScoredTurn] = (),
        advantages: Sequence[float] | np.ndarray = (),
        pictures: Pictures = NO_PICTURES,
    ) -> None:
        """`name`: `before`, `after`, or `iteration-000020`; `counts`: the measures of each, for paired differences after a restart; `turns`: how
        all siblings were scored; `advantages`: what was learned from each of these turns; `pictures`: of passages that carry none."""
        groups = sibling_groups(trajectories, turns, advantages)
        rows = [trajectory_row(trajectory, mine, pictures) for trajectory, mine in zip(trajectories, groups, strict=True)]
        for row, counted in zip(rows, counts, strict=False):
            row["counts"] = json.dumps(_plain(counted))
        shown = pa.Table.from_pylist(picture_rows(trajectories, pictures), schema=PICTURE_SCHEMA)
        self.pictures.mkdir(parents=True, exist_ok=True)
        pq.write_table(shown, self.pictures / f"{name}.parquet")
        pq.write_table(pa.Table.from_pylist(rows, schema=TRAJECTORY_SCHEMA), self.trajectories / f"{name}.parquet", compression="zstd")

    def read_trajectories(self, name: str) -> list[dict[str, Any]]:
        """Rows of `TRAJECTORY_SCHEMA` with their JSON read; None where a run of an earlier version stored nothing."""
        file = self.trajectories / f"{name}.parquet"
        rows = pq.read_table(file).to_pylist() if file.exists() else []
        return [
            row
            | {"steps": json.loads(row["steps"]), "counts": json.loads(row["counts"] or "{}")}
            | {key: json.loads(row.get(key) or "null") for key in ("gold", "groups")}
            for row in rows
        ]

    def trajectory_names(self) -> list[str]:
        """What `read_trajectories` can be asked for: after, before, then iterations, the latest first."""
        found = sorted((file.stem for file in self.trajectories.glob("*.parquet")), reverse=True)
        return sorted(found, key=lambda name: ("after", "before").index(name) if name in ("after", "before") else 2)

    def read_pictures(self) -> dict[str, bytes]:
        """Key -> picture of a passage."""
        tables = [pq.read_table(file).to_pylist() for file in sorted(self.pictures.glob("*.parquet"))]
        return {row["key"]: row["data"] for rows in tables for row in rows}

    # Checkpoints

    def checkpoint_at(self, iteration: int) -> Path:
        return self.checkpoints / f"iteration-{iteration:06d}"

    def finish_checkpoint(self, aside: Path, iteration: int, facts: dict[str, Any]) -> Path:
        """Makes the folder `aside` the checkpoint of this iteration."""
        (aside / COMPLETE).write_text(json.dumps(_plain({"iteration": iteration, **facts})), encoding="utf-8")
        final = self.checkpoint_at(iteration)
        shutil.rmtree(final, ignore_errors=True)
        aside.rename(final)
        return final

    def complete_checkpoints(self) -> list[Path]:
        """Oldest first; folders that a kill left half-written are not among them."""
        return sorted(path.parent for path in self.checkpoints.glob(f"iteration-*[0-9]/{COMPLETE}"))

    def abandon_after(self, iteration: int) -> None:
        """Put later checkpoints out of the way, under another name: training goes on from this one, and they are not of its future."""
        for checkpoint in self.complete_checkpoints():
            if checkpoint > self.checkpoint_at(iteration):
                aside = checkpoint.with_name(f"{checkpoint.name}.abandoned")
                shutil.rmtree(aside, ignore_errors=True)
                checkpoint.rename(aside)

    def drop_checkpoints(self, keep_last: int, keep_best: int) -> None:
        """All but the newest ones and those of the best `score`; of equals the later one is better."""
        checkpoints = self.complete_checkpoints()
        scores = {path: json.loads((path / COMPLETE).read_text(encoding="utf-8")).get("score") for path in checkpoints}
        best = sorted((path for path in checkpoints if scores[path] is not None), key=lambda path: (scores[path], path.name), reverse=True)
        for path in set(checkpoints[:-keep_last]) - set(best[:keep_best]):
            shutil.rmtree(path)


def _plain(value: Any) -> Any:
    """JSON has no NaN, and numpy's numbers are not Python's."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(item) for item in value]
    if hasattr(value, "item") and not isinstance(value, str):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
