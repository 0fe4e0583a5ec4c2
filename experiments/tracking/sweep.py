"""Parent and child runs: all runs that say `tracking.parent=NAME` stand under one run of that name in MLflow's list.

with sweep(tracking, "alpha-beta"):     # optional: the first child makes the parent as well
    tune.Tuner(...).fit()               # each trial with tracking.parent=alpha-beta
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from experiments.config import TrackingConfig
from experiments.tracking.store import bound_waiting, connect, experiment_id

TAG = "sweep"


def parent_run(client: Any, experiment: str, tracking: TrackingConfig) -> str:
    """Id of the parent run that `tracking.parent` names, made if need be; empty where it names none.

    Of several that were made at the same moment the oldest one stays."""
    if not tracking.parent:
        return ""
    if found := _parents(client, experiment, tracking.parent):
        return found[0].info.run_id
    note = f"Runs with `tracking.parent={tracking.parent}`: unfold this row for them, or select them and press Compare."
    made = client.create_run(experiment, run_name=tracking.parent, tags={TAG: tracking.parent, "mlflow.note.content": note}).info.run_id
    client.set_terminated(made, "FINISHED")
    first = _parents(client, experiment, tracking.parent)[0].info.run_id
    if first != made:
        client.delete_run(made)
    return first


@contextmanager
def sweep(tracking: TrackingConfig, name: str) -> Iterator[None]:
    """The parent run, at work while the block runs, then FINISHED or FAILED. A store that cannot be reached changes nothing: children make it."""
    client, parent = None, ""
    if tracking.mlflow:
        bound_waiting()
        try:
            client = connect(tracking)
            parent = parent_run(client, experiment_id(client, tracking), replace(tracking, parent=name))
            client.update_run(parent, status="RUNNING")
        except Exception:  # whatever MLflow raises: each child tries again, and says what is wrong
            client = None
    outcome = "FAILED"
    try:
        yield
        outcome = "FINISHED"
    finally:
        if client is not None:
            try:
                client.set_terminated(parent, outcome)
            except Exception as error:
                print(f"MLflow: the sweep {name} stays RUNNING there: {type(error).__name__}")


def _parents(client: Any, experiment: str, name: str) -> list[Any]:
    return list(client.search_runs([experiment], filter_string=f"tags.{TAG} = '{name}'", order_by=["attributes.start_time ASC"]))
