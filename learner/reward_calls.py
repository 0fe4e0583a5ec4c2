"""Calls to the reward actors: trajectories go in by reference, scored turns come back by reference, with a summary."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import ray
from ray.exceptions import RayError

from learner.deadline import RolloutsLostError, objects_are_lost, results
from learner.rollout_batch import RolledOut
from rewards.scored_summary import ScoredSummary
from rollout.records import ScoredTurn


@dataclass(frozen=True)
class ScoredTurns:
    """Scored turns in Ray's object store, and their summary."""

    summary: ScoredSummary
    chunks: tuple[tuple[ray.ObjectRef, int], ...]  # references to lists of scored turns, in the order of the summary, and their lengths

    @classmethod
    def put(cls, turns: Sequence[ScoredTurn]) -> Self:
        return cls(ScoredSummary.of(turns), ((ray.put(list(turns)), len(turns)),) if turns else ())

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        return cls(ScoredSummary.joined([part.summary for part in parts]), tuple(chunk for part in parts for chunk in part.chunks))

    def fetch(self, deadline_s: float) -> list[ScoredTurn]:
        """The turns, with the episode ids of the summary. Raises `DeadlineError`; RayError if they are lost."""
        found = results([ref for ref, _ in self.chunks], "the scored turns of an iteration", deadline_s)
        placed = zip((turn for chunk in found for turn in chunk), self.summary.episode.tolist(), strict=True)
        return [replace(turn, episode=self.summary.episodes[place]) for turn, place in placed]

    def __len__(self) -> int:
        return len(self.summary)


class RewardCalls:
    """The calls for one batch: each chunk is scored as soon as it is rolled out; its number decides by which actor."""

    def __init__(self, reward_actors: Sequence[Any], deadline_s: float, with_parts: bool = False):
        self._actors, self._deadline_s, self._with_parts = reward_actors, deadline_s, with_parts
        self._calls: dict[int, tuple[ray.ObjectRef, ray.ObjectRef]] = {}
        self.asked: Counter[str] = Counter()  # trajectories that were handed in, by question id

    def begin(self, chunk: int, rolled_out: Sequence[RolledOut]) -> None:
        refs = list(dict.fromkeys(part.ref for part in rolled_out))
        order = [(refs.index(part.ref), part.first + i) for part in rolled_out for i in range(len(part.summaries))]
        self._calls[chunk] = self._actors[chunk % len(self._actors)].score_references.remote(order, self._with_parts, *refs)
        self.asked.update(summary.question_id for part in rolled_out for summary in part.summaries)

    def turns(self) -> ScoredTurns:
        """The scored turns of all chunks, in order. Raises `DeadlineError`; `RolloutsLostError`; what an actor raised."""
        chunks = sorted(self._calls)
        try:
            what = f"the rewards of {self.asked.total()} trajectories"
            found: list[ScoredSummary] = results([self._calls[chunk][0] for chunk in chunks], what, self._deadline_s)
        except RayError as error:
            if not objects_are_lost(error):
                raise
            raise RolloutsLostError("trajectories were lost with a node before they were scored") from error
        # Actors number the episodes of one call, so the number of the chunk is added.
        summaries = [summary.with_suffix(f"@{chunk}" if chunk else "") for chunk, summary in zip(chunks, found, strict=True)]
        references = tuple((self._calls[chunk][1], len(summary)) for chunk, summary in zip(chunks, summaries, strict=True))
        return ScoredTurns(ScoredSummary.joined(summaries), references)
