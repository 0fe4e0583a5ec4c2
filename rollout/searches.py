"""Searches beside the generation: asked for by episodes, made in batches by threads, joined when somebody wants to go on."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, Protocol

from retrieval_actors.records import Passage, Query

AT_ONCE = 4
"""Batches that are searched side by side; the others wait for a thread."""


class Searcher(Protocol):
    @property
    def catalog(self) -> Sequence[Any]:
        """A `Card` of every knowledge base."""
        ...

    def search_routed(self, asked: Sequence[tuple[str, Query]], k: int) -> list[list[Passage]]: ...


@dataclass(frozen=True)
class Look:
    """Passages for this query, please."""

    kb: str
    query: Query


@dataclass(frozen=True)
class Batch:
    tickets: list[int]
    """Of the episodes that asked."""
    answer: Future[list[list[Passage]]]


class Searches:
    """What is asked for between two calls of `begin` is one batch for each number of passages. Batches do not depend on how fast the knowledge
    bases answer, as long as they are joined in their order (`oldest`)."""

    def __init__(self, retriever: Searcher):
        self._retriever = retriever
        self._threads: ThreadPoolExecutor | None = None
        self._asked: list[tuple[int, Look, int]] = []
        self._under_way: deque[Batch] = deque()

    @property
    def asked(self) -> int:
        """Queries that are in no batch yet."""
        return len(self._asked)

    @property
    def under_way(self) -> int:
        """Batches that were begun and not joined."""
        return len(self._under_way)

    def ask(self, ticket: int, look: Look, passages: int) -> None:
        self._asked.append((ticket, look, passages))

    def begin(self) -> None:
        """Start to search for what was asked for."""
        if not self._asked:
            return
        self._threads = self._threads or ThreadPoolExecutor(AT_ONCE, thread_name_prefix="search")
        for k in dict.fromkeys(passages for _, _, passages in self._asked):
            looks = [(ticket, (look.kb, look.query)) for ticket, look, passages in self._asked if passages == k]
            answer = self._threads.submit(self._retriever.search_routed, [asked for _, asked in looks], k)
            self._under_way.append(Batch([ticket for ticket, _ in looks], answer))
        self._asked = []

    def oldest(self) -> list[tuple[int, list[Passage]]]:
        """Wait for the batch that was begun first; nothing when none is under way. Raises what the search raised."""
        return self._joined(self._under_way.popleft()) if self._under_way else []

    def arrived(self, wait_s: float = 0.0) -> list[tuple[int, list[Passage]]]:
        """The batches that are answered, after waiting up to `wait_s` seconds for one."""
        if wait_s and self._under_way:
            wait([batch.answer for batch in self._under_way], wait_s, return_when=FIRST_COMPLETED)
        done = [batch for batch in self._under_way if batch.answer.done()]
        self._under_way = deque(batch for batch in self._under_way if batch not in done)
        return [found for batch in done for found in self._joined(batch)]

    def close(self) -> None:
        """Nobody waits for what is under way any more."""
        self._asked, self._under_way = [], deque()
        if self._threads:
            self._threads.shutdown(wait=False, cancel_futures=True)

    def _joined(self, batch: Batch) -> list[tuple[int, list[Passage]]]:
        return list(zip(batch.tickets, batch.answer.result(), strict=True))
