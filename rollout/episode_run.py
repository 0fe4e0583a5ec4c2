"""The questions that a rollout worker is given at a time, worked on in slices: all at once, or a while and then the rest."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rollout.config import RolloutConfig
from rollout.episode import PolicyEngine, sample_recorded
from rollout.episode_pool import EpisodePool, add_all
from rollout.records import Trajectory
from rollout.searches import Searcher
from rollout.timeline import Span, Timeline


@dataclass(frozen=True)
class WorkReport:
    """What a worker did in one call."""

    worker: int
    """Its index."""
    policy_version: int
    """That it holds."""
    memory_mb: float
    """Resident, now."""
    seconds: dict[str, float] = field(default_factory=dict)
    """In `prefill`, `decode`, `encode` (prompts and parsing), `search` (waiting for passages), and `idle` since the last call."""
    sampled_tokens: int = 0
    slot_steps_used: int = 0
    """Responses that went one token further in a decode step, summed over steps."""
    slot_steps_available: int = 0
    """Slots, summed over decode steps."""
    spans: tuple[Span, ...] = ()
    """Where `train.trace` asks for them."""


@dataclass(frozen=True)
class Worked:
    """What came of one call."""

    finished: list[tuple[int, list[Trajectory]]]
    """Place of a question among those that were given -> its trajectories: one, in `chain` mode `group_size`, none where a recorded turn was
    left out."""
    unfinished: int
    """Questions that are not finished."""
    report: WorkReport


class EpisodeRun:
    """Trajectories of some questions. What they are does not depend on how the work is cut into slices."""

    def __init__(
        self,
        questions: Sequence[Any],
        engine: PolicyEngine,
        retriever: Searcher | None,
        config: RolloutConfig,
        seed: int,
        timeline: Timeline,
    ):
        self._questions, self._engine, self._config, self._seed, self._timeline = questions, engine, config, seed, timeline
        self._left = set(range(len(questions)))
        self._tickets: dict[int, int] = {}
        """Ticket of an episode -> place of its question."""
        self._found: list[dict[int, Trajectory]] = [{} for _ in questions]
        self._copies = config.group_size if config.mode == "chain" else 1
        if config.mode != "offline":
            assert retriever is not None  # validated
            self._pool = EpisodePool(engine, retriever, config.tokens_in_flight, slots=config.slots, timeline=timeline)
            self._tickets = {ticket: i // self._copies for i, ticket in enumerate(add_all(self._pool, questions, config, seed))}

    @property
    def unfinished(self) -> int:
        return len(self._left)

    def work(self, seconds: float = math.inf) -> list[tuple[int, list[Trajectory]]]:
        """Go on for about so many seconds; the questions that were finished meanwhile, as in `Worked`."""
        if self._config.mode == "offline":
            return self._work_offline()
        done, end = [], time.monotonic() + seconds
        while self._left and time.monotonic() < end:
            for event in self._pool.advance(wait_s=min(1.0, seconds)):
                if event.trajectory is None:
                    continue
                place = self._tickets[event.ticket]
                self._found[place][event.ticket] = event.trajectory
                if len(self._found[place]) == self._copies:
                    self._left.discard(place)
                    done.append((place, [self._found[place][ticket] for ticket in sorted(self._found[place])]))
        return done

    def close(self) -> None:
        """Give up what is not finished."""
        if self._config.mode != "offline":
            self._pool.close()

    def _work_offline(self) -> list[tuple[int, list[Trajectory]]]:
        with self._timeline.doing("generate"):
            found = sample_recorded(self._questions, self._engine, self._config, self._seed)
        self._left.clear()
        return [(place, [trajectory] if trajectory else []) for place, trajectory in enumerate(found)]
