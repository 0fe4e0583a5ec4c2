"""What MLflow's page of evaluations shows: a run for each measured policy or method, with its figures, its questions and its traces."""

import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.config import TrackingConfig
from experiments.tracking.mlflow_connection import bound_waiting, connect, experiment_id, identity, note
from experiments.tracking.run_folder import TRACES
from experiments.tracking.traces import TraceSender, send_new


def evaluation_run(client: Any, experiment: str, key: str, name: str, dataset: tuple[str, str], parent: str = "") -> str:
    """Id of the run with this key, created if missing. `dataset`: name and fingerprint of the questions. Add the figures with `close`."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    if found := client.search_runs([experiment], filter_string=f"tags.run_key = '{key}'", max_results=1):
        return found[0].info.run_id
    # The type as MLflow's own evaluations have it
    tags = {"mlflow.runType": "genai_evaluate", "run_key": key, "mlflow.user": os.environ.get("USER", "")}
    tags |= {"mlflow.parentRunId": parent} if parent else {}
    made = client.create_run(experiment, run_name=name, tags=tags).info.run_id
    questions = Dataset(dataset[0], dataset[1][:36], "local", "{}")
    client.log_inputs(made, [DatasetInput(questions, [InputTag("mlflow.data.context", "evaluation")])])
    return made


def close(client: Any, run_id: str, measured: Mapping[str, Any]) -> None:
    """Log what `significance.evaluation_summary` measured, unless it is there, and end the run."""
    from mlflow.entities import Metric

    known, now = client.get_run(run_id), int(time.time() * 1000)
    values = {name: figure["value"] for name, figure in measured.get("overall", {}).items()}
    unsent = {name: value for name, value in values.items() if known.data.metrics.get(name) != value}
    new = [Metric(name, float(value), now, 0) for name, value in unsent.items() if value is not None and math.isfinite(value)]
    client.log_batch(run_id, metrics=new)
    if known.info.status != "FINISHED":
        client.set_terminated(run_id, "FINISHED")


def send_evaluation(folder: Path, tracking: TrackingConfig, dataset: tuple[str, str], methods: Mapping[str, Mapping[str, Any]]) -> None:
    """A run for each method of an evaluation folder, and its traces. A second call adds what is missing. Raises what MLflow raises."""
    bound_waiting()
    client, known = connect(tracking), note(folder)
    experiment, key = experiment_id(client, tracking), known["key"]
    names = {method: f"{folder.name}: {measured['label']}" for method, measured in methods.items()}
    runs = {method: evaluation_run(client, experiment, f"{key}/{method}", name, dataset) for method, name in names.items()}
    sender = TraceSender(tracking.uri, experiment, key, folder.name)
    start = identity(folder).get("traces", 0) if known.get("uri") == tracking.uri else 0
    end = send_new(folder / TRACES, start, lambda line: sender.send(line, runs.get(line["phase"], "")))
    note(folder, uri=tracking.uri, traces=end)
    for method, measured in methods.items():
        close(client, runs[method], measured)
