"""MLflow's store: how it is reached, and how long anybody waits for it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from experiments.config import TrackingConfig
from experiments.tracking.metric_names import SECTIONS

REQUEST_S = 5
"""Seconds that one request of a running run may take. No iteration waits for it, but the end of a run does."""

EXPERIMENT_NOTE = "One run for each run folder (tag `run_folder`); sweeps are parent runs. Metrics by section:\n\n" + "\n".join(
    f"- **{section}**: {what}" for section, what in SECTIONS.items()
)

EXPERIMENT_TAGS = {"mlflow.note.content": EXPERIMENT_NOTE, "mlflow.experimentKind": "custom_model_development"}
"""The kind makes MLflow open its pages for training, not those for prompts and traces."""


def bound_waiting(seconds: int = REQUEST_S, retries: int = 1) -> None:
    """Short timeouts and few retries in the place of MLflow's minutes, no pictures of progress, no reports to its makers.

    What the user's environment says comes first.
    """
    settings = {
        "MLFLOW_HTTP_REQUEST_TIMEOUT": str(seconds),
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": str(retries),
        "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_LOGGING_LEVEL": "ERROR",
    }
    for name, value in settings.items():
        os.environ.setdefault(name, value)


def connect(tracking: TrackingConfig) -> Any:
    """A client; nothing is asked of the store yet unless it is a local data base, which is made if need be."""
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=tracking.uri, registry_uri=tracking.uri)


def experiment_id(client: Any, tracking: TrackingConfig) -> str:
    """Of `tracking.experiment`, made if need be. Artifacts of a local data base lie beside it, in `mlruns/`."""
    found = client.get_experiment_by_name(tracking.experiment)
    if found:
        return found.experiment_id
    beside = None
    if tracking.uri.startswith("sqlite:///"):
        beside = (Path(tracking.uri.removeprefix("sqlite:///")).resolve().parent / "mlruns" / tracking.experiment).as_uri()
    try:
        return client.create_experiment(tracking.experiment, artifact_location=beside, tags=EXPERIMENT_TAGS)
    except Exception:
        if found := client.get_experiment_by_name(tracking.experiment):  # another run was quicker
            return found.experiment_id
        raise
