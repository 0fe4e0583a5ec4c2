"""`serve.trace=true`: the episode of every question becomes an MLflow trace. A slow or dead store costs traces, never an answer."""

from __future__ import annotations

import logging
import queue
import threading
import time

from experiments.config import TrackingConfig
from experiments.tracking.mlflow_connection import bound_waiting, connect, experiment_id
from experiments.tracking.traces import TraceSender, trace_line
from rollout.records import Trajectory

WAITING_AT_MOST = 256  # Episodes; later ones are lost
RETRY_S = 30.0  # After a failure
logger = logging.getLogger("ray.serve")


class RequestTraces:
    def __init__(self, tracking: TrackingConfig, model: str):
        bound_waiting()
        import mlflow  # noqa: F401  (here and not in the thread: two threads that import at once can deadlock)

        self.lost = 0  # episodes without a trace
        self._tracking, self._model = tracking, model
        self._waiting: queue.Queue[tuple[Trajectory, float]] = queue.Queue(WAITING_AT_MOST)
        threading.Thread(target=self._work, name="traces", daemon=True).start()

    def add(self, episode: Trajectory) -> None:
        """Returns at once and raises nothing."""
        try:
            self._waiting.put_nowait((episode, time.time()))
        except queue.Full:
            self.lost += 1

    def _work(self) -> None:
        sender: TraceSender | None = None
        while True:
            episode, finished = self._waiting.get()
            try:
                if sender is None:
                    experiment = experiment_id(connect(self._tracking), self._tracking)
                    sender = TraceSender(self._tracking.uri, experiment, f"serve {self._model}", self._model)
                sender.send(trace_line(episode, "request", finished))
            except Exception as error:  # whatever MLflow raises must not end the thread
                self.lost += 1
                logger.warning(
                    f"serve.trace: {self.lost} requests without a trace: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
                )
                time.sleep(RETRY_S)
