"""`serve.trace`: requests become traces, and a store that is away costs nothing but them."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from episodes import episode, question, step, stop

from experiments.config import RunConfigError, TrackingConfig
from experiments.serving import request_traces
from experiments.serving.application import traced_in
from experiments.serving.request_traces import RequestTraces

ANSWERED = episode(question(1), step("text", "Tasla"), stop(), answer="Tasla")


def wait_for(there, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < end, f"it did not happen in {seconds:g} s"
        time.sleep(0.1)


def test_requests_become_traces_of_the_model(tmp_path: Path, new_store):
    import mlflow

    tracking = traced_in(TrackingConfig(uri=new_store(tmp_path)))
    traces = RequestTraces(tracking, "laptop")
    traces.add(ANSWERED)
    mlflow.set_tracking_uri(tracking.uri)

    def found() -> list:
        experiment = mlflow.get_experiment_by_name(tracking.experiment)
        return mlflow.search_traces(locations=[experiment.experiment_id], return_type="list") if experiment else []

    wait_for(lambda: found() and len(found()[0].data.spans) == 6)
    assert found()[0].info.tags["run"] == "laptop"
    assert found()[0].data.spans[2].outputs[0]["page_content"] == "The capital of Kormu is Tasla."
    assert traces.lost == 0


def test_a_store_that_is_away_is_refused_at_the_start_and_later_costs_only_traces(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(request_traces, "WAITING_AT_MOST", 4)
    (tmp_path / "file").write_text("")
    away = TrackingConfig(uri=f"sqlite:///{tmp_path}/file/mlflow.db")
    with pytest.raises(RunConfigError, match="MLflow"):
        traced_in(away)
    traces = RequestTraces(away, "laptop")
    traces.add(ANSWERED)
    wait_for(lambda: traces.lost == 1)
    began = time.monotonic()
    for _ in range(10):
        traces.add(ANSWERED)
    assert time.monotonic() - began < 0.1
    assert traces.lost == 7
