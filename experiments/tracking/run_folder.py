"""The folder of a run, `runs/NAME/`, and every file in it.

config.yaml           the resolved configuration
metrics.jsonl         one line per iteration (run/metrics_line.py)
summary.json          before, after, baselines, seconds by phase (run/measure_before_and_after.py)
fingerprints.json     hashes of the data and the knowledge bases (tracking/fingerprints.py)
tracking.json         which MLflow run belongs to the folder (tracking/mlflow_connection.py)
traces.jsonl          a line for each episode that is an MLflow trace (tracking/traces.py)
trajectories/         Parquet: episodes step by step with the siblings of every turn; pictures/ of their passages (tracking/trajectory_table.py)
checkpoints/          iteration-000020/, ...: what train.resume=auto continues from, each with the best policy until then
policy/               the best policy, in Hugging Face format; gate.yaml: what r1-router gate found about it
gaps.json             what the knowledge bases lack (r1-router gaps)
failures/             one file for each process or node that was lost
report.html           all of it on one page (report/); replay.html: its episodes under another reward (r1-router replay)
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from experiments.config import RunConfigError, TrainConfig, load_config, resolved_yaml
from experiments.config.reading import flattened
from experiments.tracking import trajectory_table
from experiments.tracking.heartbeat import driver_elsewhere, read_json
from retrieval_actors.folder_lock import hold, replace_folder
from rollout.need_matcher import need_matcher
from rollout.records import ScoredTurn, Trajectory

COMPLETE = "complete.json"  # written last into a checkpoint; holds its iteration and the checksums of its files
TRACES, GAPS = "traces.jsonl", "gaps.json"
POLICY = "policy"  # folder of the best policy, in the run folder and in every checkpoint


def run_folders(parent: Path) -> list[Path]:
    """Every RUN, STUDY/RUN and STUDY/sweep/RUN below `parent`, sorted; the inside of a run folder is not searched."""
    found = {file.parent for level in ("*", "*/*", "*/*/*") for file in parent.glob(f"{level}/config.yaml")}
    return sorted(path for path in found if not found & set(path.parents))


def flat_yaml(file: Path) -> dict[str, Any]:
    """Dotted key -> value, as written by an older version perhaps: keys may be unknown today."""
    return flattened(yaml.safe_load(file.read_text(encoding="utf-8")) or {})


def file_checksum(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()[:16]


class RunFolder:
    def __init__(self, path: Path):
        self.path, self.report = path, path / "report.html"
        self.trajectories, self.checkpoints, self.policy = path / "trajectories", path / "checkpoints", path / POLICY
        self.pictures, self.traces = self.trajectories / "pictures", path / TRACES

    @classmethod
    def start(cls, config: TrainConfig) -> RunFolder:
        """Make the folder; an earlier one is renamed, unless resumed. Raises RunConfigError or FolderHeldError if another process drives it."""
        folder = cls(Path(config.runs_folder) / config.name)
        hold(folder.path)
        if driver := driver_elsewhere(folder.path):
            fix = "end that process and wait until it has saved (SIGTERM, or ray job stop), or give this run another name=..."
            raise RunConfigError(f"{folder.path} is still driven by {driver}; expected a run without a driver: {fix}")
        if config.train.resume == "none" and (earlier := folder.path / "config.yaml").exists():
            began = datetime.fromtimestamp(earlier.stat().st_mtime)
            folder.path.rename(folder.path.with_name(f"{config.name}-{began:%Y%m%d-%H%M%S}"))
        for part in (folder.path, folder.trajectories, folder.checkpoints):
            part.mkdir(parents=True, exist_ok=True)
        (folder.path / "config.yaml").write_text(resolved_yaml(config), encoding="utf-8")
        return folder

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """Raises RunConfigError for a folder that no run has written."""
        if not (Path(path) / "config.yaml").is_file():
            raise RunConfigError(f"{path}: no run folder (config.yaml is missing); give the folder of a run, such as runs/laptop")
        return cls(Path(path))

    def config(self) -> TrainConfig:
        return load_config([str(self.path / "config.yaml")])

    def add_metrics(self, row: dict[str, Any]) -> None:
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(plain(row)) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """The lines so far, without a last line that a kill cut short."""
        file = self.path / "metrics.jsonl"
        lines = file.read_text(encoding="utf-8").split("\n") if file.exists() else []
        return [json.loads(line) for line in lines[:-1] if line]

    def forget_after(self, iteration: int) -> None:
        """Drop the metrics of later iterations: a resumed run writes them again."""
        kept = [json.dumps(row) + "\n" for row in self.metrics() if row["iteration"] <= iteration]
        write_whole(self.path / "metrics.jsonl", "".join(kept))

    def write_summary(self, summary: dict[str, Any]) -> None:
        write_whole(self.path / "summary.json", json.dumps(plain(summary), indent=2) + "\n")

    def summary(self) -> dict[str, Any]:
        """Contents of summary.json; empty if it is missing."""
        return read_json(self.path / "summary.json")

    def gaps(self) -> dict[str, Any]:
        """Contents of gaps.json; empty if it is missing."""
        return read_json(self.path / GAPS)

    def write_trajectories(
        self,
        name: str,
        trajectories: Sequence[Trajectory],
        counts: Sequence[dict[str, Any]] = (),
        turns: Sequence[ScoredTurn] = (),
        advantages: Sequence[float] | np.ndarray = (),
        folders: Mapping[str, str] | None = None,
        need_calibration: str = "",
    ) -> None:
        """`name`: `before`, `after`, or `iteration-000020`; `counts`: metric counts of each; `turns` and `advantages` as in `sibling_groups`."""
        groups, matcher = trajectory_table.sibling_groups(trajectories, turns, advantages), need_matcher(need_calibration)
        pictures = trajectory_table.passage_pictures(trajectories, folders or {})
        rows = [trajectory_table.trajectory_row(found, mine, pictures, matcher) for found, mine in zip(trajectories, groups, strict=True)]
        for row, counted in zip(rows, counts, strict=False):
            row["counts"] = json.dumps(plain(counted))
        self.pictures.mkdir(parents=True, exist_ok=True)
        shown = pa.Table.from_pylist(trajectory_table.picture_rows(pictures), schema=trajectory_table.PICTURE_SCHEMA)
        pq.write_table(shown, self.pictures / f"{name}.parquet")
        table = pa.Table.from_pylist(rows, schema=trajectory_table.TRAJECTORY_SCHEMA)
        pq.write_table(table, self.trajectories / f"{name}.parquet", compression="zstd")

    def read_trajectories(self, name: str) -> list[dict[str, Any]]:
        """Rows of `TRAJECTORY_SCHEMA` with their JSON parsed; empty where none were written."""
        file = self.trajectories / f"{name}.parquet"
        rows = pq.read_table(file).to_pylist() if file.exists() else []
        return [row | {key: json.loads(row[key] or "{}") for key in ("steps", "gold", "groups", "counts")} for row in rows]

    def trajectory_names(self) -> list[str]:
        """Names for `read_trajectories`: after, before, then iterations, the latest first."""
        found = sorted((file.stem for file in self.trajectories.glob("*.parquet")), reverse=True)
        return sorted(found, key=lambda name: ("after", "before").index(name) if name in ("after", "before") else 2)

    def read_pictures(self) -> dict[str, bytes]:
        """Key -> picture of a passage."""
        tables = [pq.read_table(file).to_pylist() for file in sorted(self.pictures.glob("*.parquet"))]
        return {row["key"]: row["data"] for rows in tables for row in rows}

    def checkpoint_at(self, iteration: int) -> Path:
        return self.checkpoints / f"iteration-{iteration:06d}"

    def complete_checkpoints(self) -> list[Path]:
        """Oldest first, without folders that a kill left half-written."""
        return sorted(path.parent for path in self.checkpoints.glob(f"iteration-*[0-9]/{COMPLETE}"))

    def next_start(self) -> str:
        """How a run that ends now can be continued."""
        good = self.complete_checkpoints()
        return f"train.resume=auto resumes from {good[-1].name}" if good else "there is no checkpoint, so it has to begin again"

    def finish_checkpoint(self, aside: Path, iteration: int, facts: dict[str, Any]) -> Path:
        """Make the folder `aside` the checkpoint of this iteration."""
        (aside / COMPLETE).write_text(json.dumps(plain({"iteration": iteration, **facts})), encoding="utf-8")
        replace_folder(self.checkpoint_at(iteration), aside)
        return self.checkpoint_at(iteration)

    def add_policy_to(self, checkpoint: Path) -> None:
        """Add the best policy so far to a checkpoint. Weights are hard links, so they take up disk space once."""
        if self.policy.is_dir():
            _link_folder(self.policy, checkpoint / POLICY)

    def restore_policy(self, checkpoint: Path | None) -> None:
        """Set `policy/` back to the best policy at the time of the checkpoint; None, or a checkpoint without one: remove it."""
        aside = self.policy.with_name(f"{POLICY}.partial")
        shutil.rmtree(aside, ignore_errors=True)
        if checkpoint and (checkpoint / POLICY).is_dir():
            _link_folder(checkpoint / POLICY, aside)
            replace_folder(self.policy, aside)
        elif self.policy.is_dir():
            shutil.rmtree(self.policy.rename(aside))

    def abandon_after(self, iteration: int) -> None:
        """Rename later checkpoints to `*.abandoned`, because training continues from this one."""
        for checkpoint in self.complete_checkpoints():
            if checkpoint > self.checkpoint_at(iteration):
                aside = checkpoint.with_name(f"{checkpoint.name}.abandoned")
                shutil.rmtree(aside, ignore_errors=True)
                checkpoint.rename(aside)

    def drop_checkpoints(self, keep_last: int, keep_best: int) -> None:
        """Delete all but the newest and the best by `score`; of equal scores, the later one is better."""
        checkpoints = self.complete_checkpoints()
        scores = {path: read_json(path / COMPLETE).get("score") for path in checkpoints}
        best = sorted((path for path in checkpoints if scores[path] is not None), key=lambda path: (scores[path], path.name), reverse=True)
        for path in set(checkpoints[:-keep_last]) - set(best[:keep_best]):
            shutil.rmtree(path.rename(path.with_name(f"{path.name}.new")))  # a kill must not leave half of one under its name


def write_whole(file: Path, text: str) -> None:
    """Replaces the file in one step: a kill leaves the old one or the new one."""
    aside = file.with_name(f"{file.name}.new")
    aside.write_text(text, encoding="utf-8")
    aside.replace(file)


def _link_folder(source: Path, target: Path) -> None:
    """Copy a folder. Weights, which are never changed in place, become hard links where the disk supports them."""

    def link(file: str, name: str) -> None:
        try:
            (os.link if file.endswith(".safetensors") else shutil.copy2)(file, name)
        except OSError:
            shutil.copy2(file, name)

    shutil.copytree(source, target, copy_function=link)


def plain(value: Any) -> Any:
    """For JSON: NaN and infinities become null, numpy's numbers become Python's."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(item) for item in value]
    if hasattr(value, "item") and not isinstance(value, str):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
