"""Questions on their way through the rollout workers: who works on what, what has come back, who is late."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rollout.episode_run import WorkReport
from rollout.records import Trajectory

CUT_OFF_AT_MOST = 2
"""Times that a question is cut off; after that it is waited for, so that long episodes are never biased away."""


@dataclass(frozen=True)
class Patience:
    """When the stragglers of a batch are cut off."""

    enough: float = 1.0
    """Share of the questions that has to be finished; 1: all."""
    seconds: float = 0.0
    """After the batch began; 0: never."""

    @property
    def endless(self) -> bool:
        return self.enough >= 1 and not self.seconds


@dataclass
class Chunk:
    """Questions that one worker takes at a time."""

    number: int
    places: list[int]
    """Of its questions in the batch."""
    losses: int = 0
    """Workers that died while they sampled it, one after the other, and finished none of its questions."""
    given: list[int] = field(default_factory=list)
    """Those of them that the worker who has it was given: the ones that were not finished by then."""


@dataclass
class Batch:
    """Questions, and their trajectories as they come."""

    questions: Sequence[Any]
    seed: int
    overrides: dict[str, Any] | None
    chunks: list[Chunk]
    patience: Patience
    waited_for: set[int]
    """Places of questions that are never cut off and are not finished."""
    waiting: deque[Chunk]
    """Chunks that nobody works on."""
    found: dict[int, list[Trajectory]] = field(default_factory=dict)
    """Place of a question -> its trajectories."""
    complete: list[Chunk] = field(default_factory=list)
    """Chunks that are finished and were not handed out yet."""
    reports: list[WorkReport] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)

    @classmethod
    def of(
        cls,
        questions: Sequence[Any],
        size: int,
        seed: int,
        overrides: dict[str, Any] | None = None,
        patience: Patience | None = None,
        waited_for: Sequence[int] = (),
    ) -> Batch:
        """Cut by the chunk size alone, so the outcome is the same whichever worker does what."""
        places = list(range(len(questions)))
        chunks = [Chunk(number, places[i : i + size]) for number, i in enumerate(range(0, len(questions), size))]
        return cls(questions, seed, overrides, chunks, patience or Patience(), set(waited_for), deque(chunks))

    def left(self, chunk: Chunk) -> list[int]:
        """Places of its questions that are not finished."""
        return [place for place in chunk.places if place not in self.found]

    def take_in(self, chunk: Chunk, finished: Sequence[tuple[int, list[Trajectory]]]) -> None:
        """Trajectories from a worker, by the place among the questions that it was `given`."""
        for place, trajectories in finished:
            self.found[chunk.given[place]] = trajectories
            self.waited_for.discard(chunk.given[place])
        if not self.left(chunk):
            self.complete.append(chunk)

    @property
    def over(self) -> bool:
        """Whether everything is finished, or what is not is cut off."""
        if len(self.found) == len(self.questions):
            return True
        if self.patience.endless or self.waited_for:
            return False
        late = self.found and self.patience.seconds and time.monotonic() - self.began >= self.patience.seconds
        enough = self.patience.enough < 1 and len(self.found) >= math.ceil(self.patience.enough * len(self.questions))
        return bool(late or enough)

    def hand_out(self, rest: bool = False) -> list[tuple[int, list[Trajectory]]]:
        """Chunks that were completed since the last call, by their number; with `rest` also what there is of the others."""
        chunks, self.complete = self.complete, []
        if rest:
            chunks = chunks + [chunk for chunk in self.chunks if self.left(chunk)]
        return [(chunk.number, [t for place in chunk.places for t in self.found.get(place, ())]) for chunk in chunks]

    def unfinished(self) -> list[int]:
        """Places of the questions without trajectories."""
        return [place for place in range(len(self.questions)) if place not in self.found]

    def trajectories(self) -> list[Trajectory]:
        """In the order of the questions."""
        return [trajectory for place in sorted(self.found) for trajectory in self.found[place]]
