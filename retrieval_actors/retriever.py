"""The handle through which everybody searches: queries go to the embedder, their vectors on to all shards, the answers are merged here."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import ray
from ray.exceptions import GetTimeoutError, ObjectLostError, RayActorError

from retrieval_actors.build import Progress
from retrieval_actors.config import RetrievalConfig
from retrieval_actors.embedder_actor import EmbedderActor
from retrieval_actors.embedders import check_embedder_name, model_of
from retrieval_actors.exact_search import merge_top_k
from retrieval_actors.knowledge_base import KnowledgeBase, KnowledgeBaseError
from retrieval_actors.records import KnowledgeBaseCard, Passage, Query
from retrieval_actors.search_log import SearchLog
from retrieval_actors.shard_actor import ShardActor

OUT_OF_REACH = (RayActorError, GetTimeoutError, ObjectLostError)
"""How Ray says that an actor, or its answer, is gone or late. Anything else is a fault of the query or of the program, and is raised."""
START_SECONDS = 300
"""Bound on starting the actors: loading an embedder on a busy laptop takes half a minute."""


class RetrievalUnavailableError(RuntimeError):
    """An actor that is needed did not answer within the deadline."""


@dataclass(frozen=True)
class Retriever:
    """Small and picklable: give it to any Ray task or actor. `close` is for the process that called `start_retrieval`."""

    catalog: tuple[KnowledgeBaseCard, ...]
    """The knowledge bases that can be searched, in the order of the configuration."""
    shards: dict[str, tuple[Any, ...]]
    """Knowledge base name -> handles of its shard actors, in order of position."""
    embedders: dict[str, Any]
    """Embedder name -> handle of its actor; embedders that share a model share the actor."""
    text_embedder: str
    deadline_s: float
    log: Any
    """Handle of the actor that counts."""

    def card(self, kb: str) -> KnowledgeBaseCard:
        for card in self.catalog:
            if card.name == kb:
                return card
        raise ValueError(f"unknown knowledge base {kb!r}: known are {', '.join(card.name for card in self.catalog)}")

    def search(self, kb: str, queries: list[Query], k: int) -> list[list[Passage]]:
        """The k best passages for each query, scores descending, ties in the order of the knowledge base; fewer where it is smaller.

        Exactly what one index over all passages would answer. A dead shard is restarted by Ray while the call waits; when there is no
        answer within the deadline every query gets one error passage, which is counted. Pictures of passages are left out.
        """
        card = self.card(kb)
        if k < 1:
            raise ValueError(f"k = {k}: at least 1")
        if not queries:
            return []
        started = time.perf_counter()
        try:
            # The vectors go from the embedder straight to the shards, not through this process.
            vectors = self.embedders[card.embedder].embed_queries.remote(card.embedder, list(queries))
            hits = ray.get([shard.search.remote(vectors, k) for shard in self.shards[kb]], timeout=self.deadline_s)
        except OUT_OF_REACH as error:
            self.log.record.remote(len(queries), time.perf_counter() - started, len(queries))
            said = f"{kb} did not answer within {self.deadline_s:g} s ({type(error).__name__})"
            return [[Passage(id="error", text="", kb=kb, error=said)] for _ in queries]
        scores, positions = merge_top_k([(found.scores, found.positions) for found in hits], k)
        passages = {position: passage for found in hits for position, passage in found.passages.items()}
        self.log.record.remote(len(queries), time.perf_counter() - started, 0)
        return [
            [replace(passages[int(position)], kb=kb, score=float(score)) for position, score in zip(*row, strict=True)]
            for row in zip(positions, scores, strict=True)
        ]

    def embed(self, texts: list[str]) -> np.ndarray:
        """(texts, dimension) float32 unit rows by the text embedder. Raises RetrievalUnavailableError past the deadline."""
        try:
            embedded = self.embedders[self.text_embedder].embed_queries.remote(self.text_embedder, [Query(text) for text in texts])
            return ray.get(embedded, timeout=self.deadline_s)
        except OUT_OF_REACH as error:
            said = f"embedder {self.text_embedder!r} did not answer within {self.deadline_s:g} s ({type(error).__name__})"
            raise RetrievalUnavailableError(said) from error

    def stats(self) -> dict[str, float]:
        """Since the start, over all processes: searches, queries, seconds (summed over callers), errors (queries), cache_hit_rate."""
        counts = ray.get([embedder.cache_counts.remote() for embedder in set(self.embedders.values())], timeout=self.deadline_s)
        hits, misses = (sum(column) for column in zip(*counts, strict=True))
        totals = ray.get(self.log.totals.remote(), timeout=self.deadline_s)
        return totals | {"cache_hit_rate": hits / max(1, hits + misses)}

    def close(self) -> None:
        """Ends the actors. Copies of this handle elsewhere then get error passages."""
        for actor in self._actors():
            ray.kill(actor)

    def _actors(self) -> Iterator[Any]:
        for shards in self.shards.values():
            yield from shards
        yield from set(self.embedders.values())
        yield self.log


def start_retrieval(config: RetrievalConfig, progress: Progress | None = None) -> Retriever:
    """Verifies every folder, starts an actor per shard and per embedding model, and returns when all of them have loaded.

    Raises KnowledgeBaseError for a folder that is not whole, has another name than the configuration says, or was built by an embedder
    of another dimension; ValueError for an unknown embedder. `progress` is told how many actors are ready.
    """
    opened = [_open_as(name, folder) for name, folder in config.folders.items()]
    names = dict.fromkeys([config.text_embedder, *(base.card.embedder for base in opened)])
    for name in names:
        check_embedder_name(name)
    placement: dict[str, Any] = {"max_restarts": -1, "max_task_retries": -1}
    if config.resource:
        placement["resources"] = {config.resource: 0.001}
    start_embedder = ray.remote(EmbedderActor).options(num_cpus=config.cpus_per_embedder, **placement).remote
    start_shard = ray.remote(ShardActor).options(num_cpus=config.cpus_per_shard, **placement).remote
    processes = {
        model: start_embedder([name for name in names if model_of(name) == model], config.cache_size, config.embed_threads)
        for model in {model_of(name): None for name in names}
    }
    retriever = Retriever(
        catalog=tuple(base.card for base in opened),
        embedders={name: processes[model_of(name)] for name in names},
        shards={
            base.card.name: tuple(
                start_shard(str(base.folder.resolve()), number, config.search_threads) for number in range(base.card.shards)
            )
            for base in opened
        },
        text_embedder=config.text_embedder,
        deadline_s=config.deadline_s,
        log=ray.remote(SearchLog).options(num_cpus=0, max_restarts=-1).remote(),
    )
    try:
        _wait_until_ready(retriever, progress)
        for base in opened:
            dimension = ray.get(retriever.embedders[base.card.embedder].dimension.remote(base.card.embedder), timeout=config.deadline_s)
            if dimension != base.card.dimension:
                found = f"has dimension {base.card.dimension}, embedder {base.card.embedder!r} makes {dimension}"
                raise KnowledgeBaseError(f"{base.folder / 'kb.json'} {found}: build it again with this embedder")
    except BaseException:
        retriever.close()
        raise
    return retriever


def _open_as(name: str, folder: str) -> KnowledgeBase:
    base = KnowledgeBase.open(folder)
    if base.card.name != name:
        raise KnowledgeBaseError(f"{base.folder / 'kb.json'} names {base.card.name!r}, the key retrieval.folders.{name} says {name!r}")
    return base


def _wait_until_ready(retriever: Retriever, progress: Progress | None) -> None:
    waiting = [shard.ready.remote() for shards in retriever.shards.values() for shard in shards]
    waiting += [embedder.ready.remote() for embedder in set(retriever.embedders.values())]
    total, end = len(waiting), time.monotonic() + START_SECONDS
    while waiting:
        ready, waiting = ray.wait(waiting, num_returns=1, timeout=max(0.0, end - time.monotonic()))
        if not ready:
            raise RetrievalUnavailableError(
                f"{len(waiting)} of {total} retrieval actors did not start in {START_SECONDS} s: are there free CPUs?"
            )
        try:
            ray.get(ready)
        except RayActorError as error:
            said = str(error).strip().splitlines()[-1]
            raise RetrievalUnavailableError(f"a retrieval actor did not start: {said}") from error
        if progress:
            progress("starting retrieval actors", total - len(waiting), total)
