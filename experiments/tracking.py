"""The same figures in MLflow. Tracking never ends a run: what could not be logged is counted, and said once."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from experiments.config import TrackingConfig, TrainConfig, flat


class Tracker:
    """One MLflow run for one run folder; going on with a folder goes on with its MLflow run."""

    def __init__(self, config: TrainConfig, folder: Path, say: Callable[[str], None]):
        self.failures = 0
        """Calls to MLflow that failed."""
        self._say = say
        self._client: Any = None
        self._run_id = ""
        if config.tracking.mlflow:
            self._attempt(lambda: self._start(config, folder))

    @property
    def run_id(self) -> str:
        """Empty without MLflow."""
        return self._run_id

    def log(self, metrics: Mapping[str, Any], step: int) -> None:
        """Numbers only; anything else, and NaN, is left out."""
        if self._client is None:
            return
        import time

        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        numbers = {key: float(value) for key, value in metrics.items() if isinstance(value, int | float) and math.isfinite(value)}
        rows = [Metric(key, value, now, step) for key, value in numbers.items()]
        self._attempt(lambda: self._client.log_batch(self._run_id, metrics=rows))

    def log_file(self, path: Path) -> None:
        if self._client is not None:
            self._attempt(lambda: self._client.log_artifact(self._run_id, str(path)))

    def log_results(self, folder: Path, summary: Mapping[str, Any], step: int) -> None:
        """Before, after and their difference as figures, and the files of the run folder that hold them."""
        for when in ("before", "after", "difference"):
            figures = summary[when].get("overall", summary[when])
            known = {f"{when}_{name}": figure["value"] for name, figure in figures.items() if figure["value"] is not None}
            self.log(known, step)
        for name in ("summary.json", "config.yaml", "report.html"):
            self.log_file(folder / name)

    def finish(self, status: str = "FINISHED") -> None:
        """`status`: FINISHED, FAILED or KILLED."""
        if self._client is not None:
            self._attempt(lambda: self._client.set_terminated(self._run_id, status))

    def _start(self, config: TrainConfig, folder: Path) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")
        from mlflow import MlflowClient

        client = MlflowClient(tracking_uri=config.tracking.uri)
        experiment = self._experiment(client, config.tracking)
        where = str(folder.resolve())
        known = client.search_runs([experiment], filter_string=f"tags.run_folder = '{where}'", max_results=1)
        if known and config.train.resume != "none":
            self._run_id = known[0].info.run_id
            client.update_run(self._run_id, status="RUNNING")
        else:
            self._run_id = client.create_run(experiment, run_name=config.name, tags={"run_folder": where}).info.run_id
            for key, value in flat(config).items():
                client.log_param(self._run_id, key, str(value)[:500])
        self._client = client

    @staticmethod
    def _experiment(client: Any, tracking: TrackingConfig) -> str:
        found = client.get_experiment_by_name(tracking.experiment)
        return found.experiment_id if found else client.create_experiment(tracking.experiment)

    def _attempt(self, call: Callable[[], Any]) -> None:
        try:
            call()
        except Exception as error:  # whatever MLflow raises: hours of training are worth more than a row of a log
            self.failures += 1
            if self.failures == 1:
                said = " ".join(str(error).split())[:200]
                self._say(f"MLflow: {type(error).__name__}: {said}; the run goes on, the same figures are in metrics.jsonl")
