"""Searches in the background, in batches."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any, NamedTuple, Protocol

from retrieval_actors.records import Passage, Query
from rollout.faults import SLOW_S, broken, sent
from rollout.records import Fault

AT_ONCE = 4  # batches searched at the same time; others wait for a thread


class Searcher(Protocol):
    @property
    def catalog(self) -> Sequence[Any]: ...  # a `KnowledgeBaseCard` of every knowledge base

    def search_routed(self, asked: Sequence[tuple[str, Query]], k: int) -> list[list[Passage]]: ...


class SearchRequest(NamedTuple):
    kb: str
    query: Query
    fault: Fault | None = None  # what is wrong with the knowledge bases, for this question


class Searches:
    """`begin` sends the waiting requests, in one batch for each number of passages."""

    def __init__(self, retriever: Searcher):
        self._retriever = retriever
        self._threads = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="search")  # threads start with the first search
        self.waiting: list[tuple[int, SearchRequest, int]] = []  # (ticket of the episode, request, number of passages), not sent yet
        self.under_way: deque[tuple[list[int], Future[list[list[Passage]]]]] = deque()  # batches: (tickets, passages for each ticket)

    def begin(self) -> None:
        for k in dict.fromkeys(passages for _, _, passages in self.waiting):
            alike = [(ticket, request) for ticket, request, passages in self.waiting if passages == k]
            answer = self._threads.submit(self._search, [request for _, request in alike], k)
            self.under_way.append(([ticket for ticket, _ in alike], answer))
        self.waiting = []

    def _search(self, requests: Sequence[SearchRequest], k: int) -> list[list[Passage]]:
        found = self._retriever.search_routed([(kb, sent(query, fault)) for kb, query, fault in requests], k)
        if any(request.fault and request.fault.kind == "slow" for request in requests):
            time.sleep(SLOW_S)  # once: the searches of a batch are slow side by side
        return [broken(kb, passages, fault, k) for (kb, _, fault), passages in zip(requests, found, strict=True)]

    def oldest(self) -> list[tuple[int, list[Passage]]]:
        """(ticket, passages) of the batch that was sent first, which is waited for. Raises what the search raised."""
        tickets, answer = self.under_way.popleft()
        return list(zip(tickets, answer.result(), strict=True))

    def arrived(self, wait_s: float = 0.0) -> list[tuple[int, list[Passage]]]:
        """(ticket, passages) of the answered batches; waits up to `wait_s` seconds for one."""
        if wait_s:
            wait([answer for _, answer in self.under_way], wait_s, return_when=FIRST_COMPLETED)
        done = [batch for batch in self.under_way if batch[1].done()]
        self.under_way = deque(batch for batch in self.under_way if batch not in done)
        return [found for tickets, answer in done for found in zip(tickets, answer.result(), strict=True)]

    def close(self) -> None:
        """Drop everything, without waiting."""
        self.waiting, self.under_way = [], deque()
        self._threads.shutdown(wait=False, cancel_futures=True)
