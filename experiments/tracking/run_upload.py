"""From a run folder to its run in MLflow: whatever is there and not yet here is sent, and nothing twice.

The folder is the truth, and the only queue: a running run and `python -m experiments.upload` do the same, after each
iteration, or once.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.config import TrackingConfig
from experiments.fingerprints import FILE as FINGERPRINTS
from experiments.run_folder import RunFolder
from experiments.tracking.artifacts import send_artifacts
from experiments.tracking.identity import identity, note
from experiments.tracking.metric_names import iteration_metrics, result_metrics, seconds_of
from experiments.tracking.policy_version import register_policy
from experiments.tracking.run_description import inputs, parameters, tags
from experiments.tracking.store import connect, experiment_id
from experiments.tracking.sweep import parent_run

AT_ONCE = 100
"""Parameters or tags, as many as MLflow takes in one request; of metrics it takes 1,000."""
METRICS_AT_ONCE = 1000


@dataclass
class Sent:
    """What an upload changed."""

    points: int = 0
    """Values of metrics."""
    files: int = 0
    versions: list[str] = field(default_factory=list)
    """Of the registered model: `name version`."""


class RunUpload:
    """One folder's way into MLflow. Every method may raise whatever MLflow raises; calling it again goes on where it was."""

    def __init__(self, folder: Path, tracking: TrackingConfig):
        self.folder, self.tracking = RunFolder(folder), tracking
        self.run_id = ""
        self.sent = Sent()
        self._client: Any = None
        self._tags: dict[str, str] = {}
        self._inputs: set[tuple[str, str]] = set()
        self._points: set[tuple[str, int, float]] = set()
        self._described: list[int] = []
        """When the files that describe the run were written, as of the last look."""
        self._read = 0
        """Bytes of metrics.jsonl that are in MLflow."""
        self.rewound = False
        """Lines of metrics.jsonl were dropped, and are written again: it has to be read from its beginning."""

    def open(self) -> None:
        """Find the folder's run, or make it. Parameters, tags and data sets that it lacks are added."""
        if self.run_id:
            return
        self._client = self._client or connect(self.tracking)
        key, settings = note(self.folder.path)["key"], parameters(self.folder.path)
        experiment = experiment_id(self._client, self.tracking)
        known = self._client.search_runs([experiment], filter_string=f"tags.run_key = '{key}'", max_results=1)
        if known:
            run = known[0]
        else:
            rows = self.folder.metrics()
            began = seconds_of(rows, self._end())[0] if rows else time.time()
            first = {"run_key": key, "mlflow.user": os.environ.get("USER", "")} | (
                {"mlflow.parentRunId": parent} if (parent := parent_run(self._client, experiment, self.tracking)) else {}
            )
            name = settings.get("name", self.folder.path.name)
            run = self._client.create_run(experiment, start_time=int(began * 1000), run_name=name, tags=first)
        self._tags = dict(run.data.tags)
        self._inputs = {(found.dataset.name, found.dataset.digest) for found in run.inputs.dataset_inputs} if run.inputs else set()
        self._parameters(run.info.run_id, settings, run.data.params)
        for name in run.data.metrics:
            self._points |= {(name, point.step, point.value) for point in self._client.get_metric_history(run.info.run_id, name)}
        self.run_id = run.info.run_id
        note(self.folder.path, uri=self.tracking.uri, experiment=self.tracking.experiment, run_id=self.run_id)

    def going_on(self) -> None:
        """The run is at work (again)."""
        self._client.update_run(self.run_id, status="RUNNING")

    def describe(self) -> None:
        """Tags and data sets, as far as they are new: looked at when the summary or the fingerprints were written again."""
        files = [self.folder.path / name for name in (FINGERPRINTS, "summary.json")]
        stamps = [file.stat().st_mtime_ns if file.exists() else 0 for file in files]
        if stamps == self._described:
            return
        from mlflow.entities import RunTag

        wanted = tags(self.folder.path, self.folder.summary(), identity(self.folder.path)["key"])
        new = {name: value for name, value in wanted.items() if self._tags.get(name) != value}
        for part in _parts(list(new.items()), AT_ONCE):
            self._client.log_batch(self.run_id, tags=[RunTag(name, value) for name, value in part])
        self._tags |= new
        unknown = [found for found in inputs(self.folder.path) if (found.dataset.name, found.dataset.digest) not in self._inputs]
        if unknown:
            self._client.log_inputs(self.run_id, datasets=unknown)
            self._inputs |= {(found.dataset.name, found.dataset.digest) for found in unknown}
        self._described = stamps

    def metrics(self) -> None:
        """Lines of metrics.jsonl that were added since the last call; at the first call, those that MLflow lacks."""
        file = self.folder.path / "metrics.jsonl"
        if not file.exists():
            return
        if self.rewound:
            self.rewound, self._read = False, 0
        with file.open("rb") as lines:
            lines.seek(self._read)
            whole = lines.read().rpartition(b"\n")[0]
        rows = [json.loads(line) for line in whole.splitlines() if line.strip()]
        times = seconds_of(rows, self._end() if not self._read else time.time())
        self._log((iteration_metrics(row), int(row["iteration"]), at) for row, at in zip(rows, times, strict=True))
        if whole:
            self._read += len(whole) + 1

    def results(self) -> None:
        """Before, after, difference and the other methods, as far as the summary has them; then files and the policy."""
        summary = self.folder.summary()
        self._log((metrics, step, self._end()) for metrics, step in result_metrics(summary))
        self.sent.files += send_artifacts(self._client, self.run_id, self.folder, with_policy=bool(self.tracking.model))
        done = "after" in summary or identity(self.folder.path).get("outcome") == "FINISHED"  # trainings of a study are measured elsewhere
        if self.tracking.model and self.folder.policy.is_dir() and done:
            self.sent.versions += register_policy(self._client, self.run_id, self.folder, self.tracking)

    def close(self, outcome: str) -> None:
        """`outcome`: FINISHED, FAILED or KILLED. The end of the run is that of its summary, where it has one."""
        info = self._client.get_run(self.run_id).info
        if info.status != outcome:
            self._client.set_terminated(self.run_id, outcome, end_time=int(self._end() * 1000))

    def _parameters(self, run_id: str, wanted: Mapping[str, str], known: Mapping[str, str]) -> None:
        """A parameter cannot be changed in MLflow: what a resumed run changed is said in a tag."""
        from mlflow.entities import Param, RunTag

        missing = [Param(key, value) for key, value in wanted.items() if key not in known]
        for part in _parts(missing, AT_ONCE):
            self._client.log_batch(run_id, params=part)
        changed = {f"changed.{key}": value for key, value in wanted.items() if known.get(key, value) != value}
        new = [RunTag(name, value) for name, value in changed.items() if self._tags.get(name) != value]
        for part in _parts(new, AT_ONCE):
            self._client.log_batch(run_id, tags=part)

    def _log(self, wanted: Iterable[tuple[Mapping[str, float], int, float]]) -> None:
        from mlflow.entities import Metric

        new = [
            Metric(name, value, int(at * 1000), step)
            for metrics, step, at in wanted
            for name, value in metrics.items()
            if (name, step, value) not in self._points
        ]
        for part in _parts(new, METRICS_AT_ONCE):
            self._client.log_batch(self.run_id, metrics=part)
            self._points |= {(point.key, point.step, point.value) for point in part}
            self.sent.points += len(part)

    def _end(self) -> float:
        """Unix seconds: when the summary, or else the last iteration, was written; now where there is neither."""
        file = self.folder.path / "metrics.jsonl"
        return float(self.folder.summary().get("finished") or (file.stat().st_mtime if file.exists() else time.time()))


def _parts(items: list[Any], size: int) -> Iterable[list[Any]]:
    return (items[start : start + size] for start in range(0, len(items), size))
