"""The reward actor: scores whole trajectories, with one call to the embedder for all of them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import ray

from retrieval_actors.retriever import Retriever
from rewards.config import RewardConfig
from rewards.judged_turn import Similarity
from rewards.scoring import score_trajectory, texts_to_compare
from rollout.records import ScoredTurn, Trajectory

RETRIEVERS = {"Text Retriever": "text", "Text Image Retriever": "text_image", "Table Retriever": "table"}
"""The paper's three retrievers: what recorded plan turns name, even where no knowledge base is loaded."""


def names_of(retriever: Retriever) -> dict[str, str]:
    """Retriever name, as the policy writes it -> knowledge base; the paper's where none is loaded."""
    return {card.retriever_name: card.name for card in retriever.catalog} or RETRIEVERS


def batched_similarity(texts: Sequence[str], retriever: Retriever) -> Similarity:
    """Cosines between `texts`, embedded in one call. Any other text, which a reward of the user's own may ask for, takes a call of its own."""
    distinct = sorted(set(texts))
    vectors = retriever.embed(distinct) if distinct else np.zeros((0, 1), np.float32)
    rows = dict(zip(distinct, vectors, strict=True))

    def row(text: str) -> np.ndarray:
        if text not in rows:
            rows[text] = retriever.embed([text])[0]
        return rows[text]

    return lambda a, b: float(row(a) @ row(b))


class RewardActor:
    """To be started by `start_reward_actor`."""

    def __init__(self, retriever: bytes, config: RewardConfig):
        self._retriever: Retriever = ray.cloudpickle.loads(retriever)
        self._config = config
        self._retrievers = names_of(self._retriever)

    def score(self, trajectories: Sequence[Trajectory]) -> list[ScoredTurn]:
        """Every turn that can be judged, trajectory by trajectory. Episodes are numbered by their place in `trajectories`."""
        similarity = batched_similarity(
            [t for trajectory in trajectories for t in texts_to_compare(trajectory, self._retrievers, self._config.paper_stops)],
            self._retriever,
        )
        scored: list[ScoredTurn] = []
        for number, trajectory in enumerate(trajectories):
            scored += score_trajectory(trajectory, similarity, self._config, self._retrievers, episode=f"{trajectory.question.id}#{number}")
        return scored

    def process_id(self) -> int:
        return os.getpid()


def start_reward_actor(retriever: Retriever, config: RewardConfig, num_cpus: float = 0.1, resource: str = "") -> Any:
    """Handle of a new `RewardActor`, which Ray restarts when it dies. `resource`: custom resource of the nodes it may run on; empty: any.

    The handle of the retriever travels as bytes: Ray cannot promise to restart an actor whose arguments hold handles of others.
    """
    resources = {resource: 0.001} if resource else {}
    actor = ray.remote(RewardActor).options(num_cpus=num_cpus, resources=resources, max_restarts=-1, max_task_retries=2)
    return actor.remote(ray.cloudpickle.dumps(retriever), config)
