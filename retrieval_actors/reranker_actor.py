"""The reranker in a process of its own, shared by everybody who searches."""

from __future__ import annotations

import os

import numpy as np

from retrieval_actors.records import Passage
from retrieval_actors.reranker import build_reranker


class RerankerActor:
    def __init__(self, name: str, threads: int):
        self._reranker = build_reranker(name, threads)

    def ready(self) -> int:
        """Its process id, once the model is loaded."""
        return os.getpid()

    def scores(self, asked: list[tuple[str, list[Passage]]]) -> list[np.ndarray]:
        """For each (query, passages): (passages,) float32, higher fits better."""
        return [self._reranker.scores(query, passages) for query, passages in asked]
