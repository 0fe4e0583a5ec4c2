"""Where the questions of an iteration come from, and how far training has got in them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, Protocol


class QuestionSource(Protocol):
    """An endless stream of questions (in `offline` mode: of recorded turns) whose position is part of a checkpoint."""

    def next(self, n: int) -> list[Any]:
        """The next n questions; never fewer."""
        ...

    def get_state(self) -> dict[str, Any]:
        """What `set_state` needs to go on exactly here: plain numbers and strings."""
        ...

    def set_state(self, state: dict[str, Any]) -> None: ...


class ShuffledQuestions:
    """A finite list, gone through again and again, in another order every epoch.

    The order of epoch e depends on (seed, e) alone, so seed and position say which questions have been used.
    """

    def __init__(self, questions: Sequence[Any], seed: int = 0):
        if not questions:
            raise ValueError("data: no questions to train on; expected at least one")
        self.questions = list(questions)
        self.seed = seed
        self.position = 0
        self._epoch = -1
        self._order: list[int] = []

    def next(self, n: int) -> list[Any]:
        start, self.position = self.position, self.position + n
        return [self._at(position) for position in range(start, start + n)]

    def get_state(self) -> dict[str, Any]:
        return {"seed": self.seed, "position": self.position, "questions": len(self.questions)}

    def set_state(self, state: dict[str, Any]) -> None:
        if state["questions"] != len(self.questions):
            raise ValueError(
                f"checkpoint: it was made with {state['questions']} training questions, now there are {len(self.questions)}; "
                "train on the same data, or start a new run"
            )
        self.seed, self.position = state["seed"], state["position"]
        self._epoch = -1

    def _at(self, position: int) -> Any:
        epoch, place = divmod(position, len(self.questions))
        if epoch != self._epoch:
            self._epoch, self._order = epoch, list(range(len(self.questions)))
            random.Random(f"{self.seed}/{epoch}").shuffle(self._order)
        return self.questions[self._order[place]]
