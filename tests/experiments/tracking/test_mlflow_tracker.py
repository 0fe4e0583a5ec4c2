"""MLflow beside a running run: alive, dead from the start, silent, and killed on the way."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from made_run import config_in, finished, row

from experiments.config import TrackingConfig, TrainConfig
from experiments.tracking import mlflow_tracker as tracker_file
from experiments.tracking.mlflow_tracker import Tracker
from experiments.tracking.mlflow_upload import result_metrics
from experiments.tracking.run_folder import RunFolder
from experiments.upload import upload

AT_ONCE_S = 0.5
"""An iteration hands over its figures in less, on a busy machine as well: nothing of MLflow is done in its thread."""
PATIENCE_S = 280


def wait_until(there: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not there():
        assert time.monotonic() < end, f"it did not happen in {PATIENCE_S} s"
        time.sleep(0.02)


def iterations(tracker: Tracker, folder: RunFolder, numbers: range) -> float:
    """The longest that an iteration waited, seconds."""
    longest = 0.0
    for iteration in numbers:
        folder.add_metrics(row(iteration))
        began = time.monotonic()
        tracker.update()
        longest = max(longest, time.monotonic() - began)
    return longest


def steps(uri: str, run_id: str) -> list[int]:
    from mlflow import MlflowClient

    return [point.step for point in MlflowClient(tracking_uri=uri).get_metric_history(run_id, "reward")]


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(tracker_file, "RETRY_S", 0.0)


def test_a_run_is_in_mlflow_while_it_runs_and_goes_on_in_its_own_after_a_restart(tmp_path: Path, new_store, monkeypatch):
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.1")
    said: list[str] = []
    uri = new_store(tmp_path)
    config = config_in(tmp_path, "mine", uri=uri)
    folder = RunFolder.start(config)
    tracker = Tracker(config, folder.path, said.append)
    iterations(tracker, folder, range(1, 3))
    wait_until(lambda: bool(tracker.run_id) and steps(uri, tracker.run_id) == [1, 2])
    client = MlflowClient(tracking_uri=uri)
    assert client.get_run(tracker.run_id).info.status == "RUNNING"
    wait_until(lambda: "system/cpu_utilization_percentage" in client.get_run(tracker.run_id).data.metrics)
    tracker.finish("KILLED")
    assert client.get_run(tracker.run_id).info.status == "KILLED"

    resumed = Tracker(config, folder.path, said.append)
    folder.forget_after(1)  # as a run does after the tracker was made
    iterations(resumed, folder, range(2, 5))
    resumed.finish()
    assert resumed.run_id == tracker.run_id
    assert steps(uri, tracker.run_id) == [1, 2, 3, 4]
    run = client.get_run(tracker.run_id)
    assert run.info.status == "FINISHED"
    assert "system/system_memory_usage_percentage" in run.data.metrics
    assert (said, tracker.failures, resumed.failures) == ([], 0, 0)


def test_iterations_that_are_made_again_within_a_run_are_sent_once(tmp_path: Path, new_store):
    said: list[str] = []
    uri = new_store(tmp_path)
    config = config_in(tmp_path, "mine", uri=uri)
    folder = RunFolder.start(config)
    tracker = Tracker(config, folder.path, said.append)
    iterations(tracker, folder, range(1, 4))
    wait_until(lambda: bool(tracker.run_id) and steps(uri, tracker.run_id) == [1, 2, 3])
    folder.forget_after(1)  # as after the loss of a learner
    iterations(tracker, folder, range(2, 6))
    tracker.finish()
    assert steps(uri, tracker.run_id) == [1, 2, 3, 4, 5]
    assert (said, tracker.failures) == ([], 0)


@contextmanager
def silent() -> Iterator[int]:
    """A port that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listening:
        kept: list[socket.socket] = []

        def accept() -> None:
            while True:
                try:
                    kept.append(listening.accept()[0])
                except OSError:
                    return

        threading.Thread(target=accept, daemon=True).start()
        yield listening.getsockname()[1]
        for connection in kept:
            connection.close()


@contextmanager
def dead() -> Iterator[int]:
    yield free_port()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return found.getsockname()[1]


@pytest.mark.parametrize("server", [dead, silent])
def test_a_server_that_is_dead_or_silent_costs_neither_time_nor_figures(server, tmp_path: Path, new_store, impatient):
    said: list[str] = []
    with server() as port:
        config = config_in(tmp_path, "mine", uri=f"http://127.0.0.1:{port}", patience_s=30)
        folder = finished(config, rows=0)
        began = time.monotonic()
        tracker = Tracker(config, folder.path, said.append)
        assert iterations(tracker, folder, range(1, 6)) < AT_ONCE_S
        wait_until(lambda: tracker.failures > 0)
        assert iterations(tracker, folder, range(6, 11)) < AT_ONCE_S
        tracker.finish()
        assert time.monotonic() - began < 60
    assert [found["iteration"] for found in folder.metrics()] == list(range(1, 11))
    assert tracker.failures >= 2
    assert len(said) == 2
    assert "the run goes on" in said[0]
    assert f"r1-router upload {folder.path}" in said[1]
    uri = new_store(tmp_path)
    assert steps(uri, upload(folder, [f"tracking.uri={uri}", "tracking.model="]).run_id) == list(range(1, 11))


@contextmanager
def mlflow_server(folder: Path, port: int) -> Iterator[subprocess.Popen]:
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{folder}/server.db", "--port", str(port)]
    command += ["--host", "127.0.0.1", "--workers", "1", "--artifacts-destination", str(folder / "artifacts")]
    # A session of its own: the server's workers end with it, by their group.
    with (folder / "server.log").open("a") as log:
        environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # eight processes that nobody needs here
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, env=environment)
    try:
        wait_until(lambda: process.poll() is None and _healthy(port))
        yield process
    finally:
        kill_group(process)


def _healthy(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health", timeout=2).status_code == 200
    except httpx.HTTPError:
        return False


def kill_group(process: subprocess.Popen) -> None:
    import signal

    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=30)


@pytest.mark.slow
@pytest.mark.timeout(6 * PATIENCE_S)
def test_a_server_that_is_killed_in_mid_run_gets_the_rest_when_it_is_back(tmp_path: Path, impatient, monkeypatch):
    said: list[str] = []
    port = free_port()
    uri = f"http://127.0.0.1:{port}"
    config = config_in(tmp_path, "mine", uri=uri, patience_s=60)
    folder = finished(config, rows=0)
    folder.policy.mkdir()
    (folder.policy / "config.json").write_text("{}")

    def all_sent(numbers: range) -> bool:
        tracker.update()  # as the next iteration would: a busy server may miss the deadline of an attempt
        return bool(tracker.run_id) and steps(uri, tracker.run_id) == list(numbers)

    with mlflow_server(tmp_path, port) as server:
        tracker = Tracker(config, folder.path, said.append)
        assert iterations(tracker, folder, range(1, 4)) < AT_ONCE_S
        wait_until(lambda: all_sent(range(1, 4)))
        kill_group(server)
        assert iterations(tracker, folder, range(4, 7)) < AT_ONCE_S
        wait_until(lambda: tracker.failures > 0)
    assert "the run goes on" in said[0]
    with mlflow_server(tmp_path, port):
        assert iterations(tracker, folder, range(7, 9)) < AT_ONCE_S
        wait_until(lambda: all_sent(range(1, 9)))
    began = time.monotonic()
    tracker.finish()
    assert time.monotonic() - began < 30
    assert "r1-router upload" in said[-1]
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")  # the upload may wait, and a busy machine makes it
    with mlflow_server(tmp_path, port):
        sent = upload(folder, [])
        assert sent.run_id == tracker.run_id
        assert sent.versions == ["r1-router-atlas 1"]
        results = sum(len(metrics) for metrics, _ in result_metrics(folder.summary()))
        assert sent.points == results  # and no iteration again
        again = upload(folder, [])
        assert (again.points, again.files, again.versions) == (0, 0, [])
        assert steps(uri, sent.run_id) == list(range(1, 9))


def test_a_store_that_cannot_be_opened_is_said_once_and_ends_nothing(tmp_path: Path, impatient):
    said: list[str] = []
    (tmp_path / "file").write_text("")
    config = config_in(tmp_path, "mine", uri=f"sqlite:///{tmp_path}/file/mlflow.db")
    folder = RunFolder.start(config)
    tracker = Tracker(config, folder.path, said.append)
    iterations(tracker, folder, range(1, 4))
    tracker.finish()
    assert tracker.failures >= 1
    assert len(said) == 2


def test_without_mlflow_nothing_is_started(tmp_path: Path):
    tracker = Tracker(TrainConfig(tracking=TrackingConfig(mlflow=False)), tmp_path, pytest.fail)
    tracker.update()
    tracker.finish()
    assert tracker.run_id == ""
