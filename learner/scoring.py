"""Rewards, asked for as soon as a chunk is rolled out, while the others still are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import ray

from learner.deadline import results
from rollout.records import ScoredTurn, Trajectory


class Scoring:
    """The chunks of one batch on their way through the reward actors.

    A chunk, not a turn, is what is scored in one call: its texts are embedded together, one call instead of thousands, and only the last chunk
    of a batch is waited for. Which actor scores which chunk depends on its number alone.
    """

    def __init__(self, reward_actors: Sequence[Any], deadline_s: float):
        self._actors, self._deadline_s = reward_actors, deadline_s
        self._calls: dict[int, ray.ObjectRef] = {}
        self.asked: Counter[str] = Counter()
        """Trajectories that were handed in, by the id of their question."""

    def begin(self, chunk: int, trajectories: Sequence[Trajectory]) -> None:
        self._calls[chunk] = self._actors[chunk % len(self._actors)].score.remote(trajectories)
        self.asked.update(trajectory.question.id for trajectory in trajectories)

    def turns(self) -> list[ScoredTurn]:
        """Of all chunks, in their order. Actors number the episodes of one call, so the number of the chunk is added here.

        Raises `DeadlineError`, or what an actor raised.
        """
        chunks = sorted(self._calls)
        scored = results([self._calls[chunk] for chunk in chunks], f"the rewards of {self.asked.total()} trajectories", self._deadline_s)
        return [
            replace(turn, episode=f"{turn.episode}@{chunk}") if chunk else turn
            for chunk, turns in zip(chunks, scored, strict=True)
            for turn in turns
        ]
