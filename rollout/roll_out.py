"""The episodes of the questions that a rollout worker gets in one call, run in slices of time, and a report on the time spent."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import psutil

from rollout.config import RolloutConfig
from rollout.engines.base import Engine, Request, Sampling, generate
from rollout.episode import derive_seed
from rollout.episode_pool import EpisodePool
from rollout.records import Question, RecordedTurn, State, Trajectory, TurnGroup
from rollout.searches import Searcher
from rollout.timeline import Span, Timeline
from rollout.trajectory_summary import TrajectorySummary, summary_of


@dataclass(frozen=True)
class WorkReport:
    """One call of the worker with this index: counts, times and summaries, without the trajectories."""

    worker: int
    policy_version: int
    finished: list[tuple[int, list[TrajectorySummary]]] = field(default_factory=list)
    """(place of a question, its trajectories): one, in `chain` mode `group_size`, none for a recorded turn that was left out."""
    unfinished: int = 0
    memory_mb: float = 0.0
    seconds: dict[str, float] = field(default_factory=dict)
    """In `prefill`, `decode`, `encode` (prompts and parsing), `search` (waiting for passages), and `idle` since the last call."""
    sampled_tokens: int = 0
    slot_steps_used: int = 0
    slot_steps_available: int = 0
    spans: tuple[Span, ...] = ()  # empty unless `train.trace`


class EngineTimeline(Timeline):
    """Splits `generate` into `prefill` and `decode` by the engine's own clock (prefill first, if a span has both)."""

    COUNTS = ("sampled_tokens", "slot_steps_used", "slot_steps_available")

    def __init__(self, engine: Engine, drawn: bool = False):
        super().__init__(drawn=drawn)
        self._engine = engine
        self.leave_out()

    def leave_out(self) -> None:
        """What the engine has done since the last report belongs to no report."""
        self._before, self._prefill_s, self._reported = replace(self._engine.stats), self._engine.stats.prefill_s, time.time()

    def did(self, name: str, start: float, seconds: float) -> None:
        if name != "generate":
            super().did(name, start, seconds)
            return
        total = self._engine.stats.prefill_s
        prefill, self._prefill_s = min(seconds, total - self._prefill_s), total
        if prefill > 0:
            super().did("prefill", start, prefill)
        super().did("decode", start + prefill, seconds - prefill)

    def resume(self) -> None:
        """Work begins again: the time since the last report was idle."""
        self.did("idle", self._reported, max(0.0, time.time() - self._reported))

    def report(self, worker: int, version: int, finished: list[tuple[int, list[Trajectory]]], unfinished: int) -> WorkReport:
        seconds, spans = self.take()
        self._reported = time.time()
        before, self._before = self._before, replace(self._engine.stats)
        counts = {name: getattr(self._before, name) - getattr(before, name) for name in self.COUNTS}
        memory_mb = psutil.Process().memory_info().rss / 2**20
        summaries = [(place, [summary_of(trajectory) for trajectory in found]) for place, found in finished]
        return WorkReport(worker, version, summaries, unfinished, memory_mb, seconds, spans=tuple(spans), **counts)


class EpisodeRun:
    """Trajectories of some questions. They do not depend on how the work is cut into slices."""

    def __init__(
        self,
        questions: Sequence[Any],
        engine: Engine,
        retriever: Searcher | None,
        config: RolloutConfig,
        seed: int,
        timeline: Timeline | None = None,
        repeats: Sequence[int] | None = None,
    ):
        """`repeats`: those of `repeats_of`, if the questions are part of a longer list."""
        self._questions, self._engine, self._config, self._seed = questions, engine, config, seed
        self._timeline = timeline or Timeline()
        self._repeats = repeats_of(questions) if repeats is None else repeats
        self._found: dict[int, dict[int, Trajectory]] = {place: {} for place in range(len(questions))}
        """Place of an unfinished question -> ticket of an episode -> its trajectory."""
        self._pool: EpisodePool | None = None
        if config.mode != "offline":
            assert retriever is not None  # validated
            self._pool = EpisodePool(engine, retriever, config.tokens_in_flight, slots=config.slots, timeline=self._timeline)
            tickets = self._pool.add_all(questions, config, seed, self._repeats)
            self._copies = len(tickets) // max(1, len(questions))

    @property
    def unfinished(self) -> int:
        return len(self._found)

    def work(self, seconds: float = math.inf) -> list[tuple[int, list[Trajectory]]]:
        """Continue for about this many seconds; returns the questions that were finished in that time: (place, trajectories), by place."""
        if self._pool is None:
            self._found.clear()
            with self._timeline.doing("generate"):
                return self._sample_recorded()
        done, end = [], time.monotonic() + seconds
        while self._found and time.monotonic() < end:
            for event in self._pool.advance(wait_s=min(1.0, seconds)):
                if event.trajectory is None:
                    continue
                place = event.ticket // self._copies
                self._found[place][event.ticket] = event.trajectory
                if len(self._found[place]) == self._copies:
                    done.append((place, [trajectory for _, trajectory in sorted(self._found.pop(place).items())]))
        return sorted(done, key=lambda each: each[0])

    def close(self) -> None:
        if self._pool is not None:
            self._pool.close()

    def _sample_recorded(self) -> list[tuple[int, list[Trajectory]]]:
        """`offline` mode: siblings of every recorded turn, in one batch; prompts longer than `max_prompt_tokens` are left out."""
        policy, config = self._engine.policy, self._config
        states = [
            State(turn.kind, policy.encode(turn.message, turn.image), turn.image, turn.question, target=turn.target)
            for turn in self._questions
        ]
        short = {place: state for place, state in enumerate(states) if len(state.prompt_ids) <= config.max_prompt_tokens}
        sampling, repeats = Sampling.of(config), self._repeats
        requests = [
            Request(state.prompt_ids, state.image, config.group_size, derive_seed(self._seed, state.key, repeats[place]), sampling)
            for place, state in short.items()
        ]
        found: list[tuple[int, list[Trajectory]]] = [(place, []) for place in range(len(states))]
        for (place, state), responses in zip(short.items(), generate(self._engine, requests), strict=True):
            group = TurnGroup(state, tuple(response.turn(state.kind, policy) for response in responses))
            found[place][1].append(Trajectory(state.question, (), None, "", (group,)))
        return found


def roll_out(
    questions: Sequence[Question | RecordedTurn], engine: Engine, retriever: Searcher | None, config: RolloutConfig, seed: int
) -> list[Trajectory]:
    """Trajectories in the order of the questions; in `chain` mode `group_size` of each. Those that failed have an `error`. A sample
    depends on (seed, question, repeat) alone, not on the batch. Recorded turns are sampled in `offline` mode, whatever `config` says."""
    if questions and isinstance(questions[0], RecordedTurn):
        config = replace(config, mode="offline")
    run = EpisodeRun(questions, engine, retriever, config, seed)
    try:
        return [trajectory for _, found in run.work() for trajectory in found]
    finally:
        run.close()


def repeats_of(questions: Sequence[Any]) -> list[int]:
    """For each question (of recorded turns: each prompt), how often it occurs earlier in the list: equal ones must not draw the same episodes."""
    seen: Counter[Any] = Counter()
    found = []
    for question in questions:
        recorded = isinstance(question, RecordedTurn)
        key = (question.system, question.user, question.image) if recorded else getattr(question, "id", question)
        found.append(seen[key])
        seen[key] += 1
    return found
