"""MLflow beside a running run: a thread sends what the run folder holds, and no iteration waits for it.

A store that is slow, dead or silent costs the run nothing: what was not sent stays in the folder, is sent when the store is back, or later by
`python -m experiments.upload`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments.config import TrainConfig
from experiments.tracking.identity import note
from experiments.tracking.run_upload import RunUpload
from experiments.tracking.store import bound_waiting

RETRY_S = 30.0
"""After a failure nothing is tried for so long; the end of the run is tried in any case."""
FAILING_PATIENCE_S = 15.0
"""How long the end of a run waits for a store that failed the last time."""


class Tracker:
    """One MLflow run for one run folder; going on with a folder goes on with its MLflow run."""

    def __init__(self, config: TrainConfig, folder: Path, say: Callable[[str], None]):
        self.failures = 0
        """Attempts to send that failed."""
        self._say, self._folder, self._patience_s = say, folder, config.tracking.patience_s
        self._uri = config.tracking.uri
        self._upload: RunUpload | None = None
        self._outcome = ""
        self._failing = self._sent = False
        self._trained = False
        self._not_before = 0.0
        self._wake = threading.Event()
        self._monitor: Any = None
        self._note("")
        if config.tracking.mlflow:
            bound_waiting()
            import mlflow  # noqa: F401  (here and not in the thread: imports of two threads get into each other's way)

            self._upload = RunUpload(folder, config.tracking)
            self._thread = threading.Thread(target=self._work, daemon=True, name="mlflow")
            self._thread.start()
            self._wake.set()

    @property
    def run_id(self) -> str:
        """Empty without MLflow, and until it has answered."""
        return self._upload.run_id if self._upload else ""

    def update(self) -> None:
        """There are new lines in metrics.jsonl. Returns at once."""
        self._trained = True
        self._wake.set()

    def rewind(self) -> None:
        """Lines of metrics.jsonl were dropped: their iterations are made again, and what is new of them is sent."""
        if self._upload is not None:
            self._upload.rewound = True

    def finish(self, outcome: str = "FINISHED") -> None:
        """Send the rest: results, files, the policy. `outcome`: FINISHED, FAILED or KILLED.

        Waits `tracking.patience_s` at most, and for a store that failed the last time not even that."""
        self._note(outcome)
        if self._upload is None:
            return
        self._outcome = outcome
        self._wake.set()
        self._thread.join(min(self._patience_s, FAILING_PATIENCE_S) if self._failing else self._patience_s)
        if not self._sent:
            self._say(f"MLflow at {self._uri} lacks (part of) this run; once it is there: python -m experiments.upload {self._folder}")

    def _note(self, outcome: str) -> None:
        try:
            note(self._folder, outcome=outcome)
        except OSError as error:
            self._say(f"warning: how the run ended was not written: {error}")

    def _work(self) -> None:
        while not self._outcome:
            self._wake.wait()
            self._wake.clear()
            if not self._outcome and time.monotonic() >= self._not_before:
                self._attempt(self._send)
        self._sent = self._attempt(self._send_all)

    def _send(self) -> None:
        assert self._upload is not None
        first = not self._upload.run_id
        self._upload.open()
        if first or self._failing:
            self._upload.going_on()
        if self._trained:  # before, a resumed run has not yet dropped the lines that it will write again
            self._upload.metrics()
        self._upload.describe()
        self._watch_machine()

    def _send_all(self) -> None:
        assert self._upload is not None
        self._upload.open()
        if self._monitor is not None:
            self._monitor.finish()
        self._upload.metrics()
        self._upload.results()
        self._upload.describe()
        self._upload.close(self._outcome)

    def _watch_machine(self) -> None:
        """MLflow's own monitor of CPU, memory, disk and network; it ends itself when the store fails, and is then started again."""
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        assert self._upload is not None
        if self._monitor is None or self._monitor._process is None or not self._monitor._process.is_alive():
            self._monitor = SystemMetricsMonitor(self._upload.run_id, resume_logging=True, tracking_uri=self._uri)
            self._monitor.start()

    def _attempt(self, send: Callable[[], None]) -> bool:
        try:
            send()
        except Exception as error:  # whatever MLflow raises: hours of training are worth more than a row of a log
            self.failures += 1
            self._failing, self._not_before = True, time.monotonic() + RETRY_S
            if self.failures == 1:
                said = " ".join(str(error).split())[:200]
                self._say(f"MLflow: {type(error).__name__}: {said}; the run goes on, the same figures are in metrics.jsonl")
            return False
        self._failing = False
        return True
