"""Which questions are on their way: asked, and neither learned from nor failed."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from learner.question_source import QuestionSource


@dataclass(eq=False)
class Asked:
    """One question (offline: recorded turn) of a source, and where it stood there."""

    question: Any
    draw: dict[str, Any] = field(repr=False)
    """State of the source before it was drawn."""
    place: int
    """Among those that were drawn with it."""
    cut_off: int = 0
    """Times that it was a straggler."""


class QuestionLedger:
    """A source whose questions can be given back. Every question that was taken is settled once, and until then it is part of a checkpoint: after
    a restart it is asked again, so nothing is learned from twice and nothing is lost."""

    def __init__(self, source: QuestionSource):
        self.source = source
        self.asked_again = 0
        """Questions that were cut off, or on their way when a checkpoint was made, since the start."""
        self._open: list[Asked] = []
        self._given_back: deque[Asked] = deque()

    def take(self, n: int) -> list[Asked]:
        """The next n questions: first those that were given back."""
        again = [self._given_back.popleft() for _ in range(min(n, len(self._given_back)))]
        draw = self.source.get_state()
        new = [Asked(question, draw, place) for place, question in enumerate(self.source.next(n - len(again)))] if n > len(again) else []
        self._open += again + new
        return again + new

    def cut_off(self, asked: Sequence[Asked]) -> None:
        """These took too long: they are asked again, before all others."""
        self.settle(asked)
        for entry in asked:
            entry.cut_off += 1
        self._given_back.extend(asked)
        self.asked_again += len(asked)

    def settle(self, asked: Sequence[Asked]) -> None:
        """These are done: learned from, or failed."""
        done = set(map(id, asked))
        self._open = [entry for entry in self._open if id(entry) not in done]

    def get_state(self) -> dict[str, Any]:
        """Position of the source, and what has to be asked again: plain numbers and strings."""
        again = [{"draw": entry.draw, "place": entry.place, "cut_off": entry.cut_off} for entry in (*self._given_back, *self._open)]
        return {"source": self.source.get_state(), "again": again, "asked_again": self.asked_again + len(self._open)}

    def set_state(self, state: dict[str, Any]) -> None:
        self._open, self._given_back = [], deque()
        for entry in state["again"]:
            self.source.set_state(entry["draw"])
            question = self.source.next(entry["place"] + 1)[entry["place"]]
            self._given_back.append(Asked(question, entry["draw"], entry["place"], entry["cut_off"]))
        self.source.set_state(state["source"])
        self.asked_again = state["asked_again"]
