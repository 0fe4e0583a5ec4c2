"""The handle through which everybody searches: queries go to the embedder, their vectors on to all shards, the answers are merged here."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import ray

from retrieval_actors.circuit_breaker import CircuitBreaker
from retrieval_actors.fan_out import Call, Unanswered, fan_out
from retrieval_actors.merged_hits import by_vectors, fused, with_passages
from retrieval_actors.records import KnowledgeBaseCard, Passage, Query
from retrieval_actors.shard_actor import ShardHits

INLINE_BYTES = 100 * 1024
"""Up to which Ray sends an argument with the call (`max_direct_call_object_size`)."""
FUSION_DEPTH = 100
"""Ranks of the vectors and of the words that are fused."""


class RetrievalUnavailableError(RuntimeError):
    """An actor that is needed did not answer within the deadline."""


@dataclass(frozen=True)
class Retriever:
    """Small and picklable: give it to any Ray task or actor. `close` is for the process that called `start_retrieval`."""

    catalog: tuple[KnowledgeBaseCard, ...]
    """The knowledge bases that can be searched, in the order of the configuration."""
    shards: dict[str, tuple[tuple[Any, ...], ...]]
    """Knowledge base name -> for each shard, in order of position, the handles of its replicas."""
    embedders: dict[str, Any]
    """Embedder name -> handle of its actor; embedders that share a model share the actor."""
    text_embedder: str
    deadline_s: float
    log: Any
    """Handle of the actor that counts."""
    words: dict[str, Any] = field(default_factory=dict)
    """Knowledge base name -> handle of the actor that searches it by words; empty: searches go by vectors alone."""
    reranker: Any = None
    """Handle of its actor; None: there is none."""
    rerank_candidates: int = 0
    breakers: dict[str, CircuitBreaker] = field(default_factory=dict, compare=False, repr=False)
    """Knowledge base name -> its breaker: every process that searches counts the failures that it sees."""
    lent: frozenset[Any] = frozenset()
    """Handles of actors that belong to another retrieval, which ends them."""

    def card(self, kb: str) -> KnowledgeBaseCard:
        for card in self.catalog:
            if card.name == kb:
                return card
        raise ValueError(f"unknown knowledge base {kb!r}: known are {', '.join(card.name for card in self.catalog)}")

    def search(self, kb: str, queries: Sequence[Query], k: int, pictures: bool = False) -> list[list[Passage]]:
        """`search_routed` for queries that all go to one knowledge base."""
        self.card(kb)
        return self.search_routed([(kb, query) for query in queries], k, pictures)

    def search_routed(self, asked: Sequence[tuple[str, Query]], k: int, pictures: bool = False) -> list[list[Passage]]:
        """For each (knowledge base, query) the k best passages, scores descending, ties in the order of the knowledge base; fewer where it
        is smaller. Knowledge bases are searched side by side.

        By vectors, over exact indexes, this is what one index over all passages would answer. With words, scores are those of the fusion;
        with a reranker, its own. A dead shard is restarted by Ray, or answered for by a replica, while the call waits. Queries without an
        answer by the deadline, and those to a knowledge base whose breaker is open, get one error passage each, which is counted. Passages
        carry their pictures only if `pictures` says so. Raises ValueError for an unknown knowledge base and for k < 1.
        """
        if k < 1:
            raise ValueError(f"k = {k}: at least 1")
        started = time.perf_counter()
        rows: defaultdict[str, list[int]] = defaultdict(list)
        for row, (kb, _) in enumerate(asked):
            rows[self.card(kb).name].append(row)
        refused = {kb: self._refusal(kb) for kb in rows}
        groups = {kb: [asked[row][1] for row in rows[kb]] for kb in rows if not refused[kb]}
        answers: dict[str, list[list[Passage]] | Unanswered] = {}
        try:
            answers = self._answers(groups, k, pictures)
        finally:  # whatever happened: a breaker that let a search through hears of its end
            seconds = time.perf_counter() - started
            for kb, its in rows.items():
                failed = isinstance(answers.get(kb, Unanswered("")), Unanswered)
                if kb in groups and kb in self.breakers:
                    self.breakers[kb].record(answered=not failed)
                self.log.record.remote(kb, len(its), seconds if kb in groups else None, len(its) if failed else 0)
        found: list[list[Passage]] = [[] for _ in asked]
        for kb, its in rows.items():
            answer = answers.get(kb, Unanswered(refused[kb]))
            for number, row in enumerate(its):
                found[row] = (
                    [Passage(id="error", text="", kb=kb, error=answer.reason)] if isinstance(answer, Unanswered) else answer[number]
                )
        return found

    def _refusal(self, kb: str) -> str:
        """Why the knowledge base is not even asked; empty where it is."""
        breaker = self.breakers.get(kb)
        if breaker is None or breaker.allows():
            return ""
        return f"{kb} failed {breaker.failures} times in a row and is not asked for {breaker.seconds_left():.0f} s more"

    def _answers(self, groups: dict[str, list[Query]], k: int, pictures: bool) -> dict[str, list[list[Passage]] | Unanswered]:
        """The passages of each group of queries, or why there are none."""
        end = time.monotonic() + self.deadline_s
        candidates = max(k, self.rerank_candidates) if self.reranker else k
        depth = max(candidates, FUSION_DEPTH) if self.words else candidates
        vectors = self._vectors(groups, end)
        # Many vectors are put once for all shards, which read them where they lie; few are quicker with the call.
        given = {
            kb: ray.put(rows) if rows.nbytes > INLINE_BYTES and len(self.shards[kb]) > 1 else rows
            for kb, rows in vectors.items()
            if not isinstance(rows, Unanswered)
        }
        calls = [(kb, Call(replicas, "search", (given[kb], depth, pictures))) for kb in given for replicas in self.shards[kb]]
        by_words = {kb: [query.text for query in groups[kb]] for kb in given if kb in self.words}
        calls += [(kb, Call((self.words[kb],), "search", (texts, depth, pictures))) for kb, texts in by_words.items()]
        hits: defaultdict[str, list[Any]] = defaultdict(list)
        for (kb, _), hit in zip(calls, fan_out([call for _, call in calls], end - time.monotonic()), strict=True):
            hits[kb].append(hit)
        answers: dict[str, list[list[Passage]] | Unanswered] = {}
        for kb, queries in groups.items():
            heard = hits[kb] or [vectors[kb]]
            silent = next((hit for hit in heard if isinstance(hit, Unanswered)), None)
            if silent:
                answers[kb] = Unanswered(f"{kb} did not answer within {self.deadline_s:g} s ({silent.reason})")
            else:
                answers[kb] = self._best(kb, queries, heard, candidates, k, end)
        return answers

    def _vectors(self, groups: dict[str, list[Query]], end: float) -> dict[str, np.ndarray | Unanswered]:
        """(queries, dimension) of each group: one call for all groups of an embedder."""
        users: defaultdict[str, list[str]] = defaultdict(list)
        for kb in groups:
            users[self.card(kb).embedder].append(kb)
        calls = [
            Call((self.embedders[name],), "embed_queries", (name, [query for kb in kbs for query in groups[kb]]))
            for name, kbs in users.items()
        ]
        vectors: dict[str, np.ndarray | Unanswered] = {}
        for kbs, embedded in zip(users.values(), fan_out(calls, end - time.monotonic()), strict=True):
            if isinstance(embedded, Unanswered):
                vectors |= dict.fromkeys(kbs, Unanswered(f"embedder: {embedded.reason}"))
            else:
                vectors |= zip(kbs, np.split(embedded, np.cumsum([len(groups[kb]) for kb in kbs])[:-1]), strict=True)
        return vectors

    def _best(
        self, kb: str, queries: list[Query], heard: list[ShardHits], candidates: int, k: int, end: float
    ) -> list[list[Passage]] | Unanswered:
        """What the shards, the words and the reranker say together."""
        if kb in self.words:
            *shards, words = heard
            rankings = fused(by_vectors(shards, max(candidates, FUSION_DEPTH)), words, candidates)
        else:
            rankings = by_vectors(heard, candidates)
        passages = with_passages(rankings, heard, kb)
        if not self.reranker:
            return passages
        asked = [(query.text, its) for query, its in zip(queries, passages, strict=True)]
        (scores,) = fan_out([Call((self.reranker,), "scores", (asked,))], end - time.monotonic())
        if isinstance(scores, Unanswered):
            return Unanswered(f"the reranker did not answer within {self.deadline_s:g} s ({scores.reason})")
        return [
            [replace(its[row], score=float(score[row])) for row in np.argsort(-score, kind="stable")[:k]]
            for its, score in zip(passages, scores, strict=True)
        ]

    def embed(self, texts: list[str]) -> np.ndarray:
        """(texts, dimension) float32 unit rows by the text embedder. Raises RetrievalUnavailableError past the deadline."""
        asked = (self.text_embedder, [Query(text) for text in texts])
        (vectors,) = fan_out([Call((self.embedders[self.text_embedder],), "embed_queries", asked)], self.deadline_s)
        if isinstance(vectors, Unanswered):
            said = f"embedder {self.text_embedder!r} did not answer within {self.deadline_s:g} s ({vectors.reason})"
            raise RetrievalUnavailableError(said)
        return vectors

    def stats(self) -> dict[str, float]:
        """Since the start, over all processes: searches, queries, seconds (summed over callers), errors (queries), cache_hit_rate of query
        embeddings. What is not known, because its actor does not answer within the deadline, is left out."""
        calls = [Call((embedder,), "cache_counts", ()) for embedder in set(self.embedders.values())]
        *counts, totals = fan_out([*calls, Call((self.log,), "totals", ())], self.deadline_s)
        heard = [count for count in counts if not isinstance(count, Unanswered)]
        hits, misses = (sum(column) for column in zip(*heard, strict=True)) if heard else (0, 0)
        return ({} if isinstance(totals, Unanswered) else totals) | {"cache_hit_rate": hits / max(1, hits + misses)}

    def close(self) -> None:
        """Ends the actors. Copies of this handle elsewhere then get error passages."""
        for actor in self.actors():
            if actor not in self.lent:
                ray.kill(actor)

    def actors(self) -> Iterator[Any]:
        for shards in self.shards.values():
            for replicas in shards:
                yield from replicas
        yield from self.words.values()
        yield from set(self.embedders.values())
        yield from [self.reranker] if self.reranker else []
        yield self.log
