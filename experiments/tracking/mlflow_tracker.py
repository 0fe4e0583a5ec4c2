"""MLflow during a run: a thread sends what the run folder holds, and a slow or dead store neither delays nor ends the run."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.config import TrainConfig
from experiments.tracking.mlflow_connection import bound_waiting, note
from experiments.tracking.mlflow_upload import RunUpload
from experiments.tracking.run_folder import TRACES
from experiments.tracking.traces import TRAINING, append

MakeLines = Callable[[], Sequence[Mapping[str, Any]]]
TRACED_SHARE = 0.01  # Of a run's time, at most, goes into traces of training; then iterations are left out
RETRY_S = 30.0  # between attempts after a failure; the end of the run is always tried


class Tracker:
    def __init__(self, config: TrainConfig, folder: Path, say: Callable[[str], None]):
        self.failures = 0  # attempts to send that failed
        self._say, self._folder, self._tracking = say, folder, config.tracking
        self._upload = RunUpload(folder, config.tracking)
        self._outcome, self._sent, self._trained = "", False, False
        self._traces: dict[str, MakeLines] = {}  # phase -> the newest episodes that are not in the folder yet
        self._began, self._traced_s = time.monotonic(), 0.0  # CPU seconds that traces have cost
        self._not_before = 0.0  # of the next attempt; 0: the last one did not fail
        self._wake = threading.Event()
        self._monitor: Any = None
        self._note("")
        if config.tracking.mlflow:
            bound_waiting()
            import mlflow  # noqa: F401  (here and not in the thread: two threads that import at once can deadlock)

            self._thread = threading.Thread(target=self._work, daemon=True, name="mlflow")
            self._thread.start()
            self._wake.set()

    @property
    def run_id(self) -> str:
        """Empty without MLflow, and until it has answered."""
        return self._upload.run_id

    def update(self) -> None:
        self._trained = True
        self._wake.set()

    def trace(self, phase: str, make: MakeLines) -> None:
        """The thread calls `make` and adds its lines to the folder; before it has, newer ones of the same phase take their place."""
        too_dear = phase == TRAINING and self._traced_s > TRACED_SHARE * (time.monotonic() - self._began)
        if self._tracking.mlflow and self._tracking.traces and not too_dear:
            self._traces[phase] = make
            self._wake.set()

    def finish(self, outcome: str = "FINISHED") -> None:
        """Send the rest: results, files, the policy, for at most `tracking.patience_s`. `outcome`: FINISHED, FAILED or KILLED."""
        self._note(outcome)
        if not self._tracking.mlflow:
            return
        self._outcome = outcome
        self._wake.set()
        self._thread.join(self._tracking.patience_s)
        if not self._sent:
            self._say(f"not all of the run is in MLflow; later: r1-router upload {self._folder}")

    def _note(self, outcome: str) -> None:
        try:
            note(self._folder, outcome=outcome)
        except OSError as error:
            self._say(f"warning: how the run ended was not written: {error}")

    def _work(self) -> None:
        while not self._outcome:
            self._wake.wait()
            self._wake.clear()
            self._attempt(self._write_traces, traces=True)
            if not self._outcome and time.monotonic() >= self._not_before and self._attempt(self._send):
                self._attempt(self._upload.send_traces, traces=True)
        self._attempt(self._write_traces)
        self._sent = self._attempt(self._send_all)

    def _write_traces(self) -> None:
        while self._traces:
            append(self._folder / TRACES, self._traces.popitem()[1]())

    def _send(self) -> None:
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        again = not self.run_id or self._not_before
        self._upload.open()
        if again:
            self._upload.mark_running()
        if self._trained:  # before, a resumed run has not yet dropped the lines that it will write again
            self._upload.send_iterations()
        self._upload.send_tags()
        if self._monitor is None:  # of CPU, memory, disk and network, until a request of its fails
            self._monitor = SystemMetricsMonitor(self.run_id, resume_logging=True, tracking_uri=self._tracking.uri)
            self._monitor.start()
        self._not_before = 0.0

    def _send_all(self) -> None:
        self._upload.open()
        if self._monitor is not None:
            self._monitor.finish()
        self._upload.finish(self._outcome)

    def _attempt(self, send: Callable[[], None], traces: bool = False) -> bool:
        began = time.thread_time()
        try:
            send()
        except Exception as error:  # whatever MLflow raises must not end a training
            self.failures += 1
            self._not_before = time.monotonic() + RETRY_S
            if self.failures == 1:
                message = " ".join(str(error).split())[:200]
                self._say(f"MLflow: {type(error).__name__}: {message}; the run goes on, the same figures are in metrics.jsonl")
            return False
        finally:
            self._traced_s += (time.thread_time() - began) * traces
        return True
