"""The questions of an iteration and their state: waiting, with a rollout worker, finished, or late."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import ray

from learner.deadline import results
from rollout.records import Trajectory
from rollout.roll_out import WorkReport, repeats_of
from rollout.trajectory_summary import TrajectorySummary

NOWHERE = -1


@dataclass(frozen=True)
class RolledOut:
    """The trajectories of one question, in Ray's object store."""

    summaries: Sequence[TrajectorySummary]
    ref: ray.ObjectRef  # of a list of trajectories
    first: int  # place of the first of them in that list


def fetch_trajectories(rolled_out: Sequence[RolledOut], deadline_s: float) -> list[Trajectory]:
    """The trajectories, in order. Raises `DeadlineError`; RayError if they are lost."""
    refs = list(dict.fromkeys(part.ref for part in rolled_out))
    lists = dict(zip(refs, results(refs, "the trajectories of an iteration", deadline_s), strict=True))
    return [trajectory for part in rolled_out for trajectory in lists[part.ref][part.first : part.first + len(part.summaries)]]


@dataclass
class Chunk:
    """Questions that one worker takes at a time."""

    number: int
    places: list[int]
    losses: int = 0  # workers in a row that died while they sampled it, without finishing a question
    given: list[int] = field(default_factory=list)
    """Those of `places` that were unfinished when its worker got it; `NOWHERE`: a question of an earlier batch that is not in this one."""


@dataclass
class RolloutBatch:
    """Questions, and the trajectories finished so far. Chunks are cut by size alone, so the result does not depend on which worker takes which.
    Stragglers are cut off when the share `enough` is finished (1: all), or after `straggler_s` (0: never); the places `waited_for` never are."""

    questions: Sequence[Any]
    chunk_size: int
    seed: int
    overrides: dict[str, Any] | None = None
    enough: float = 1.0
    straggler_s: float = 0.0
    waited_for: Sequence[int] = ()

    def __post_init__(self) -> None:
        self.repeats = repeats_of(self.questions)
        self.carry_on([])
        self.found: dict[int, RolledOut] = {}  # place of a question -> its trajectories
        self.reports: list[WorkReport] = []
        self._waits_for_all = self.enough >= 1 and not self.straggler_s
        self.slice_s = 5.0 if self._waits_for_all else 0.5  # after it workers return what is finished, so that it outlives them
        self._complete: list[Chunk] = []
        self._began = time.monotonic()

    def carry_on(self, held: Sequence[Sequence[Any]]) -> list[Chunk]:
        """Cut the questions into chunks. `held`: the questions that each of some workers has since an earlier batch (None: has finished);
        they are the first chunks, which are returned and do not wait."""
        places = {id(question): place for place, question in enumerate(self.questions)}
        given = [[places.pop(id(question), NOWHERE) for question in questions] for questions in held]
        carried = [Chunk(number, [place for place in part if place != NOWHERE], given=part) for number, part in enumerate(given)]
        rest = sorted(set(range(len(self.questions))) - {place for part in given for place in part})
        parts = [rest[i : i + self.chunk_size] for i in range(0, len(rest), self.chunk_size)]
        self.waiting = deque(Chunk(len(carried) + number, part) for number, part in enumerate(parts))
        self.chunks = [*carried, *self.waiting]
        return carried

    def left(self, chunk: Chunk) -> list[int]:
        return [place for place in chunk.places if place not in self.found]

    def take_in(self, chunk: Chunk, finished: Sequence[tuple[int, Sequence[TrajectorySummary]]], ref: ray.ObjectRef) -> None:
        """Add what a worker has finished: (place in `chunk.given`, summaries); `ref`: the list of all these trajectories."""
        first = 0
        for place, summaries in finished:
            if chunk.given[place] != NOWHERE:
                self.found[chunk.given[place]] = RolledOut(summaries, ref, first)
            first += len(summaries)
        if not self.left(chunk):
            self._complete.append(chunk)

    @property
    def over(self) -> bool:
        if len(self.found) == len(self.questions):
            return True
        if self._waits_for_all or set(self.waited_for) - self.found.keys():
            return False
        late = self.found and self.straggler_s and time.monotonic() - self._began >= self.straggler_s
        enough = self.enough < 1 and len(self.found) >= math.ceil(self.enough * len(self.questions))
        return bool(late or enough)

    def hand_out(self, rest: bool = False) -> list[tuple[int, list[RolledOut]]]:
        """(number, trajectories) of the chunks completed since the last call; with `rest` also the finished part of the others."""
        chunks = self._complete + [chunk for chunk in self.chunks if rest and self.left(chunk)]
        self._complete = []
        return [(chunk.number, [self.found[place] for place in chunk.places if place in self.found]) for chunk in chunks]

    def unfinished(self) -> list[int]:
        return [place for chunk in self.chunks for place in self.left(chunk)]

    def rolled_out(self) -> list[RolledOut]:
        return [self.found[place] for place in sorted(self.found)]
