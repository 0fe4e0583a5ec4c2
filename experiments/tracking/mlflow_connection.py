"""The connection to MLflow, its experiment and parent run, and `tracking.json`: which MLflow run belongs to a run folder."""

import json
import os
import re
import socket
import threading
import uuid
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from experiments.command_line.reachable import CONNECT_S
from experiments.config import RunConfigError, TrackingConfig
from experiments.tracking.heartbeat import read_json
from experiments.tracking.run_folder import write_whole

IDENTITY = "tracking.json"
NOTING = threading.Lock()  # the end of a run and its MLflow thread both write the file


def bound_waiting(seconds: int = 5, retries: int = 1) -> None:
    """Short timeouts and few retries instead of MLflow's minutes; no progress bars, no telemetry. Environment variables have priority."""
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


def unreachable(uri: str) -> str:
    """Why this store is not reachable, within `CONNECT_S`, where MLflow would try for minutes; empty: it is, or this check cannot tell."""
    parts = urlsplit(uri)
    if uri.startswith("sqlite:///"):
        folder = Path(uri.removeprefix("sqlite:///")).absolute().parent
        return "" if folder.is_dir() and os.access(folder, os.W_OK) else f"{folder} is no folder that can be written"
    try:
        if parts.scheme in ("http", "https"):
            server = parts.netloc.rpartition("@")[2]  # without a password
            reply = httpx.get(f"{parts.scheme}://{server}{parts.path.rstrip('/')}/health", timeout=CONNECT_S, verify=False)
            if reply.status_code >= 502:
                raise OSError(f"status {reply.status_code}")
        elif parts.hostname and parts.port:
            socket.create_connection((parts.hostname, parts.port), CONNECT_S).close()
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
        return f"does not answer ({' '.join(str(error).split()) or type(error).__name__})"
    return ""


def connect(tracking: TrackingConfig) -> Any:
    """An MLflow client. Raises RunConfigError within seconds where the store cannot be reached."""
    if reason := unreachable(tracking.uri):
        without_password = re.sub("//.*@", "//", tracking.uri)
        raise RunConfigError(f"MLflow at {without_password}: {reason}; start it, or set tracking.uri to a running one")
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=tracking.uri, registry_uri=tracking.uri)


def experiment_id(client: Any, tracking: TrackingConfig) -> str:
    """Id of `tracking.experiment`, created if missing. Artifacts of a local database are stored beside it, in `mlruns/`."""
    if found := client.get_experiment_by_name(tracking.experiment):
        return found.experiment_id
    folder = Path(tracking.uri.removeprefix("sqlite:///")).resolve().parent / "mlruns" / tracking.experiment
    beside = folder.as_uri() if tracking.uri.startswith("sqlite:///") else None
    tags = {"mlflow.experimentKind": "custom_model_development"}  # MLflow then opens its pages for training
    return client.create_experiment(tracking.experiment, artifact_location=beside, tags=tags)


def parent_run(client: Any, experiment: str, name: str) -> str:
    """Id of the parent run named `tracking.parent`, created if missing. All runs with this setting become its children."""
    if found := client.search_runs([experiment], filter_string=f"tags.sweep = '{name}'", order_by=["attributes.start_time ASC"]):
        return found[0].info.run_id
    made = client.create_run(experiment, run_name=name, tags={"sweep": name}).info.run_id
    client.set_terminated(made, "FINISHED")
    return made


def identity(folder: Path) -> dict[str, Any]:
    """Contents of `tracking.json`: `uri`, `experiment`, `run_id`, `files` (path -> checksum of what was sent), `outcome` (as for `finish`),
    and `key`, which is made once, so that the folder is one MLflow run wherever it is uploaded from. Empty without the file."""
    return read_json(folder / IDENTITY)


def note(folder: Path, **facts: Any) -> dict[str, Any]:
    """Add facts to `tracking.json`, and a key if there is none; returns its contents. Raises OSError where the folder cannot be written."""
    with NOTING:
        new = {"key": uuid.uuid4().hex} | (known := identity(folder)) | facts
        if new != known:
            write_whole(folder / IDENTITY, json.dumps(new, indent=1) + "\n")
    return new
