"""A search: queries go to the embedder, their vectors to all shards, and the answers are merged here. Its calls have one deadline, and each
is answered by one of the replicas of its actor."""

import random
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayError, RayTaskError

from retrieval_actors.actors.circuit_breaker import CircuitBreaker
from retrieval_actors.index.bm25 import reciprocal_rank_fusion
from retrieval_actors.index.exact import merge_top_k
from retrieval_actors.records import LEXICAL_SHARD, KnowledgeBaseCard, Passage, Query, ShardHits

HEDGE_SHARE = 0.1  # of the deadline: after it a second replica is asked, too (hedged requests: Dean and Barroso, The Tail at Scale, 2013)
PAUSE_S = 0.1  # before dead replicas are asked again: Ray restarts them meanwhile
FUSION_DEPTH = 100  # ranks of the vector ranking and of the lexical one that are fused
RERANK_CANDIDATES = 20  # passages of a query that the reranker reads, or k if that is more


class RetrievalUnavailableError(RuntimeError):
    """An actor that is needed did not answer within the deadline."""


@dataclass(frozen=True)
class Unanswered:
    """Stands in for an answer that did not come by the deadline. An actor may return it: another replica is asked then, too."""

    reason: str  # `silent`, the class name of Ray's last error, or what the actor said


@dataclass(frozen=True)
class Call:
    replicas: Sequence[Any]  # handles of actors with the same content
    method: str
    arguments: tuple[Any, ...]


@dataclass
class _Pending:
    first: int  # number of the replica that is asked first
    next_try: float
    tries: int = 0
    reason: str = "silent"


def call_replicas(calls: Sequence[Call], deadline_s: float) -> list[Any]:
    """The answers, in the order of the calls; `Unanswered` where none came by the deadline. Raises what a call raised in its actor.
    If a replica is dead, the next one is asked, and after the last one the first again. If a replica is slow, the next one is asked as well."""
    now = time.monotonic()
    end, hedge_s = now + deadline_s, HEDGE_SHARE * deadline_s
    pending = {number: _Pending(random.randrange(len(call.replicas)), now) for number, call in enumerate(calls)}
    running: dict[Any, int] = {}
    answers: dict[int, Any] = {}
    while pending:
        now = time.monotonic()
        if now >= end:
            answers |= {number: Unanswered(waiting.reason) for number, waiting in pending.items()}
            break
        for number, waiting in pending.items():
            if now >= waiting.next_try:
                call = calls[number]
                replica = call.replicas[(waiting.first + waiting.tries) % len(call.replicas)]
                running[getattr(replica, call.method).remote(*call.arguments)] = number
                waiting.tries += 1
                waiting.next_try = now + hedge_s if len(call.replicas) > 1 else end
        wake = min(end, *(waiting.next_try for waiting in pending.values()))
        if not running:
            time.sleep(max(0.0, wake - now))
            continue
        ready, _ = ray.wait(list(running), num_returns=1, timeout=max(0.0, wake - now))
        for reference in ready:
            number = running.pop(reference)
            if number not in pending:  # another replica was quicker
                continue
            try:
                answer = ray.get(reference, timeout=max(1.0, end - time.monotonic()))
            except RayTaskError:  # an error of the query or the program, not of a process
                raise
            except RayError as error:
                answer = Unanswered(type(error).__name__)
            if isinstance(answer, Unanswered):
                waiting = pending[number]
                waiting.reason = answer.reason
                all_tried = waiting.tries >= len(calls[number].replicas)
                waiting.next_try = min(waiting.next_try, time.monotonic() + PAUSE_S * all_tried)
            else:
                answers[number] = answer
                del pending[number]
    for reference in running:
        ray.cancel(reference)
    return [answers[number] for number in range(len(calls))]


@dataclass(frozen=True)
class Retriever:
    """Picklable: give it to any Ray task or actor. `close` is for the process that called `start_retrieval`."""

    catalog: tuple[KnowledgeBaseCard, ...]  # the knowledge bases, in the order of the configuration
    shards: Mapping[str, Sequence[Sequence[Any]]]  # knowledge base name -> for each shard, in order, replicas of its actor
    embedders: dict[str, Any]  # embedder name -> handle of its actor; several embedders may share one
    text_embedder: str
    deadline_s: float
    log: Any  # handle of the search log
    lexical: dict[str, Sequence[Any]] = field(default_factory=dict)  # the same for its BM25 index; empty: vectors only
    reranker: Any = None  # handle of its actor, or None
    breakers: dict[str, CircuitBreaker] = field(default_factory=dict, compare=False, repr=False)  # by knowledge base, in every process
    borrowed: frozenset[Any] = frozenset()  # handles of actors that belong to another retrieval, which ends them

    def card(self, kb: str) -> KnowledgeBaseCard:
        cards = {card.name: card for card in self.catalog}
        if kb not in cards:
            raise ValueError(f"unknown knowledge base {kb!r}: known are {', '.join(cards)}")
        return cards[kb]

    def search(self, kb: str, queries: Sequence[Query], k: int, pictures: bool = False) -> list[list[Passage]]:
        return self.search_routed([(kb, query) for query in queries], k, pictures)

    def search_routed(self, requests: Sequence[tuple[str, Query]], k: int, pictures: bool = False) -> list[list[Passage]]:
        """The k best passages for each (knowledge base, query), scores descending, ties to the earlier passage; with their pictures on request.
        A query without an answer by the deadline, or to a knowledge base whose breaker is open, gets one error passage. Raises ValueError for an
        unknown knowledge base and for k < 1, and what an actor raised because of the program or the query."""
        if k < 1:
            raise ValueError(f"k = {k}: at least 1")
        rows: defaultdict[str, list[int]] = defaultdict(list)
        for row, (kb, _) in enumerate(requests):
            rows[self.card(kb).name].append(row)
        # A thread for each knowledge base: a silent one delays no other.
        with ThreadPoolExecutor(max(1, len(rows))) as threads:
            answers = {kb: threads.submit(self._answer, kb, [requests[row][1] for row in rows[kb]], k, pictures) for kb in rows}
        found: list[list[Passage]] = [[] for _ in requests]
        for kb, answer in answers.items():
            for row, passages in zip(rows[kb], answer.result(), strict=True):
                found[row] = passages
        return found

    def _answer(self, kb: str, queries: list[Query], k: int, pictures: bool) -> list[list[Passage]]:
        """The passages of one knowledge base, or an error passage for each query. Reports the outcome to the circuit breaker and the log."""

        def errors(reason: str) -> list[list[Passage]]:
            return [[Passage(id="error", text="", kb=kb, error=reason)] for _ in queries]

        started, breaker = time.monotonic(), self.breakers[kb]
        if not breaker.allows():
            self.log.record.remote(kb, len(queries), None, len(queries))
            return errors(f"{kb} failed {breaker.failures} times in a row and is not searched for the next {breaker.seconds_left():.0f} s")
        answered = None
        try:
            found, answered = self._search_one(kb, queries, k, pictures, started + self.deadline_s), True
        except RetrievalUnavailableError as error:
            found, answered = errors(str(error)), False
        finally:  # every search that the breaker allowed must be recorded
            breaker.record(answered)
        self.log.record.remote(kb, len(queries), time.monotonic() - started, 0 if answered else len(queries))
        return found

    def _search_one(self, kb: str, queries: list[Query], k: int, pictures: bool, end: float) -> list[list[Passage]]:
        embedder = self.card(kb).embedder
        (vectors,) = self._call([Call((self.embedders[embedder],), "embed_queries", (embedder, queries))], end, kb, "embedder: ")
        candidates = max(k, RERANK_CANDIDATES) if self.reranker else k
        depth = max(candidates, FUSION_DEPTH) if kb in self.lexical else candidates
        calls = [Call(replicas, "search", (kb, number, vectors, depth, pictures)) for number, replicas in enumerate(self.shards[kb])]
        if kb in self.lexical:
            texts = [query.text for query in queries]
            calls.append(Call(self.lexical[kb], "search", (kb, LEXICAL_SHARD, texts, depth, pictures)))
        hits: list[ShardHits] = self._call(calls, end, kb)
        scores, positions = merge_top_k([(found.scores, found.positions) for found in hits[: len(self.shards[kb])]], depth)
        if kb in self.lexical:
            pairs = zip(positions.tolist(), hits[-1].positions.tolist(), strict=True)
            rankings = [reciprocal_rank_fusion(pair, candidates) for pair in pairs]
        else:
            rankings = [list(zip(*row, strict=True)) for row in zip(positions.tolist(), scores.tolist(), strict=True)]
        known = {position: passage for found in hits for position, passage in found.passages.items()}
        passages = [[Passage(*known[position], kb, score) for position, score in ranking if position >= 0] for ranking in rankings]
        return self._reranked(queries, passages, k, end) if self.reranker else passages

    def _reranked(self, queries: list[Query], passages: list[list[Passage]], k: int, end: float) -> list[list[Passage]]:
        pairs = [(query.text, candidates) for query, candidates in zip(queries, passages, strict=True)]
        (scores,) = self._call([Call((self.reranker,), "scores", (pairs,))], end, "the reranker")
        return [
            [replace(candidates[row], score=float(score[row])) for row in np.argsort(-score, kind="stable")[:k]]
            for candidates, score in zip(passages, scores, strict=True)
        ]

    def _call(self, calls: Sequence[Call], end: float, who: str, what: str = "") -> list[Any]:
        """The answers of all. Raises RetrievalUnavailableError."""
        answers = call_replicas(calls, end - time.monotonic())
        if silent := next((answer for answer in answers if isinstance(answer, Unanswered)), None):
            raise RetrievalUnavailableError(f"{who} did not answer within {self.deadline_s:g} s ({what}{silent.reason})")
        return answers

    def embed(self, texts: list[str]) -> np.ndarray:
        """(texts, dimension) float32 unit rows by the text embedder. Raises RetrievalUnavailableError past the deadline."""
        name, queries = self.text_embedder, [Query(text) for text in texts]
        call = Call((self.embedders[name],), "embed_queries", (name, queries))
        return self._call([call], time.monotonic() + self.deadline_s, f"embedder {name!r}")[0]

    def stats(self) -> dict[str, float]:
        """Since the start, over all processes: the log's totals and the cache_hit_rate of queries, leaving out actors that do not answer."""
        calls = [Call((embedder,), "cache_counts", ()) for embedder in set(self.embedders.values())]
        *counts, totals = call_replicas([*calls, Call((self.log,), "totals", ())], self.deadline_s)
        known = [count for count in counts if not isinstance(count, Unanswered)]
        hits, misses = (sum(column) for column in zip(*known, strict=True)) if known else (0, 0)
        return ({} if isinstance(totals, Unanswered) else totals) | {"cache_hit_rate": hits / max(1, hits + misses)}

    def close(self) -> None:
        """Ends the actors. Copies of this handle elsewhere then get error passages."""
        for actor in self.actors():
            if actor not in self.borrowed:
                ray.kill(actor)

    def actors(self) -> Iterator[Any]:
        yield from self.shard_actors()
        yield from [*set(self.embedders.values()), *([self.reranker] if self.reranker else []), self.log]

    def shard_actors(self) -> dict[Any, tuple[list[tuple[str, int]], int]]:
        """Handle -> ((knowledge base, number or LEXICAL_SHARD) of each shard that it holds, number of the replica)."""
        shards = {(kb, number): replicas for kb, all_shards in self.shards.items() for number, replicas in enumerate(all_shards)}
        shards |= {(kb, LEXICAL_SHARD): replicas for kb, replicas in self.lexical.items()}
        found: dict[Any, tuple[list[tuple[str, int]], int]] = {}
        for shard, replicas in shards.items():
            for copy, handle in enumerate(replicas):
                found.setdefault(handle, ([], copy))[0].append(shard)
        return found
