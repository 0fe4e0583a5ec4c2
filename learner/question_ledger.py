"""The source of the questions of an iteration, and which of them are open: asked, but neither learned from nor failed."""

import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

CUT_OFF_AT_MOST = 2  # times that a question is cut off; then it is waited for, so that long episodes are learned from, too


class ShuffledQuestions:
    """An endless stream of questions (`offline`: of recorded turns), shuffled in every epoch; the order depends on (seed, epoch) alone."""

    def __init__(self, questions: Sequence[Any], seed: int = 0):
        if not questions:
            raise ValueError("data: no questions to train on; expected at least one")
        self.questions, self.seed, self.position = list(questions), seed, 0
        self._epoch, self._order = -1, list[int]()

    def next(self, n: int) -> list[Any]:
        start, self.position = self.position, self.position + n
        return [self._at(position) for position in range(start, start + n)]

    def get_state(self) -> dict[str, Any]:
        return {"seed": self.seed, "position": self.position, "questions": len(self.questions)}

    def set_state(self, state: dict[str, Any]) -> None:
        if state["questions"] != len(self.questions):
            found = f"it was made with {state['questions']} training questions, now there are {len(self.questions)}"
            raise ValueError(f"checkpoint: {found}; train on the same data, or start a new run")
        self.seed, self.position, self._epoch = state["seed"], state["position"], -1

    def _at(self, position: int) -> Any:
        epoch, place = divmod(position, len(self.questions))
        if epoch != self._epoch:
            self._epoch, self._order = epoch, list(range(len(self.questions)))
            random.Random(f"{self.seed}/{epoch}").shuffle(self._order)
        return self.questions[self._order[place]]


@dataclass(eq=False)
class AskedQuestion:
    question: Any
    draw: dict[str, Any] = field(repr=False)  # state of the source before it was drawn
    place: int  # among the questions that were drawn together
    cut_off: int = 0  # times that it was a straggler


class QuestionLedger:
    """A source whose questions can be asked again. Every question that was taken is settled once. Open questions are stored in checkpoints, and
    asked again after a restart: none is learned from twice, and none is lost."""

    def __init__(self, source: ShuffledQuestions):
        self.source = source
        self.asked_again = 0  # questions, since the start, that were cut off, lost, or open when a checkpoint was made
        self._open: list[AskedQuestion] = []
        self._given_back: deque[AskedQuestion] = deque()

    def take(self, n: int) -> list[AskedQuestion]:
        """The next n questions, beginning with those that are asked again."""
        again = [self._given_back.popleft() for _ in range(min(n, len(self._given_back)))]
        draw = self.source.get_state()
        taken = again + [AskedQuestion(question, draw, place) for place, question in enumerate(self.source.next(n - len(again)))]
        self._open += taken
        return taken

    def cut_off(self, asked: Sequence[AskedQuestion]) -> None:
        """Ask these stragglers again first."""
        for entry in asked:
            entry.cut_off += 1
        self._requeue(asked)

    def ask_again(self) -> None:
        """All open questions are lost: ask them again first."""
        self._requeue(self._open)

    def settle(self, asked: Sequence[AskedQuestion]) -> None:
        """Close these questions: they were learned from, or failed."""
        done = set(map(id, asked))
        self._open = [entry for entry in self._open if id(entry) not in done]

    def get_state(self) -> dict[str, Any]:
        again = [{"draw": entry.draw, "place": entry.place, "cut_off": entry.cut_off} for entry in (*self._given_back, *self._open)]
        return {"source": self.source.get_state(), "again": again, "asked_again": self.asked_again + len(self._open)}

    def set_state(self, state: dict[str, Any]) -> None:
        self._open, self._given_back = [], deque()
        for entry in state["again"]:
            self.source.set_state(entry["draw"])
            question = self.source.next(entry["place"] + 1)[entry["place"]]
            self._given_back.append(AskedQuestion(question, **entry))
        self.source.set_state(state["source"])
        self.asked_again = state["asked_again"]

    def _requeue(self, asked: Sequence[AskedQuestion]) -> None:
        self.settle(asked)
        self._given_back.extend(asked)
        self.asked_again += len(asked)
