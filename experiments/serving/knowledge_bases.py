"""The deployment that owns the retrieval actors: started once, shared by all router replicas, and still there when one of them dies."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from retrieval_actors.config import RetrievalConfig
from retrieval_actors.retriever import Retriever
from retrieval_actors.start import start_retrieval


class KnowledgeBases:
    def __init__(self, retrieval: dict[str, Any]):
        self._config = RetrievalConfig(**retrieval)
        self._progress = "starting"
        self._retriever: Retriever | None = None
        self._error: Exception | None = None
        self._done = threading.Event()
        threading.Thread(target=self._start, name="start_retrieval", daemon=True).start()

    def _start(self) -> None:
        def tell(what: str, done: int, total: int) -> None:
            self._progress = f"{what} {done}/{total}"

        try:
            self._retriever = start_retrieval(self._config, tell)
            self._progress = "ready"
        except Exception as error:  # kept for whoever asks: a thread has nobody to raise to
            self._error, self._progress = error, f"failed: {error}"
        self._done.set()

    async def progress(self) -> str:
        return self._progress

    async def retriever(self) -> Retriever:
        """The handle by which replicas search; waits until all actors have loaded. Raises what starting them raised."""
        while not self._done.is_set():
            await asyncio.sleep(0.05)
        if self._error:
            raise self._error
        assert self._retriever is not None
        return self._retriever

    def check_health(self) -> None:
        """Asked by Serve, which starts the replica anew when it raises."""
        if self._error:
            raise self._error
