"""Many episodes over one engine and one retriever: whatever they ask for is served side by side.

Every tick hands results to the coroutines, submits the turns and begins the searches that they ask for, and lets the engine go on. Searches are
made in the background. Two ways to join them:

- `in_order` (default): the oldest batch of searches is joined when the engine runs out of work, never by the clock. What is asked for together
  and what is submitted when, hence every bit of the outcome, does not depend on how fast a knowledge base answers.
- `as_they_come`: at the first tick after they have arrived, for serving.
"""

from __future__ import annotations

import itertools
import random
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from retrieval_actors.records import Passage
from rollout.config import RolloutConfig
from rollout.engines.base import Finished, Request, Response
from rollout.episode import Episode, Log, PolicyEngine, QuestionError, Sample, Surroundings, sampling_of, stream, turn_of
from rollout.methods.registry import find_method
from rollout.records import Question, Step, Trajectory, TurnGroup
from rollout.searches import Look, Searcher, Searches
from rollout.timeline import Timeline

Join = Literal["in_order", "as_they_come"]
QUERIES_PER_SEARCH = 8
"""`in_order`: a search begins when so many queries are asked for, or when the engine runs out of work."""
STARVED = 0.25
"""`in_order`: the engine runs out of work when it has free slots, and no more than this share of the responses that the episodes under way can
ask for at a time. Below, decoding few responses costs more than waiting for passages; above, it would wait beside work that is there."""
SEARCH_POLL_S = 0.005
"""An engine elsewhere is not waited for longer than this while searches are under way."""


@dataclass(frozen=True)
class EpisodeEvent:
    """Something that has happened in one episode."""

    ticket: int
    """What `add` returned."""
    kind: Literal["planned", "searched", "answered", "finished", "failed"]
    step: Step | None = None
    """`planned`, `searched`, `answered`: the step, as far as it is known."""
    group: TurnGroup | None = None
    """`planned`, `answered`, `finished`: the siblings that were sampled, and which of them the episode goes on from."""
    trajectory: Trajectory | None = None
    """`finished`: all of it. `failed`: what there was, with the `error`."""
    error: str | None = None
    """`failed`: why."""


@dataclass
class _Running:
    """One episode."""

    question: Question
    config: RolloutConfig
    seed: int
    kbs: Sequence[str] | None
    end: float
    """By `time.monotonic`; when it is given up."""
    log: Log = field(default_factory=Log)
    coroutine: Episode | None = None
    """None: it waits for room."""
    asked: Sample | Look | None = None
    siblings: dict[int, Response] = field(default_factory=dict)
    """Responses to what it asked for last that are there."""
    request: int | None = None
    """Ticket of that request."""
    turns: int = 0
    tokens: int = 0
    """What it holds of the budget: prompt and room for all siblings, of its last turn."""

    @property
    def width(self) -> int:
        """Siblings of each turn."""
        return 1 if self.config.mode == "chain" else self.config.group_size


class EpisodePool:
    """`add` questions, then `advance` until nothing is `unfinished`."""

    def __init__(
        self,
        engine: PolicyEngine,
        retriever: Searcher,
        tokens: int = 262144,
        join: Join = "in_order",
        slots: int = 0,
        timeline: Timeline | None = None,
    ):
        """`tokens`: no further episode begins while the last turns of those under way have more tokens (prompts, and room for responses).
        `slots`: responses that the engine works on side by side."""
        self.engine, self.tokens, self.join, self.slots = engine, tokens, join, slots
        self.timeline = timeline or Timeline()
        """Seconds in `encode` (prompts, parsing), `generate` (the engine), and `search` (waiting for passages)."""
        self._cards = {card.name: card for card in retriever.catalog}
        self._searches = Searches(retriever)
        self._numbers = itertools.count()
        self._waiting: deque[int] = deque()
        self._running: dict[int, _Running] = {}
        self._requests: dict[int, int] = {}
        """Ticket of the engine -> ticket of the episode."""
        self._events: list[EpisodeEvent] = []
        self._deadlines = False
        self._width = 0
        """Siblings of all episodes that have begun and not ended."""

    @property
    def unfinished(self) -> int:
        """Episodes that have neither finished nor failed, and events that nobody has heard of yet."""
        return len(self._running) + len(self._events)

    def add(
        self, question: Question, config: RolloutConfig, seed: int, *, kbs: Sequence[str] | None = None, deadline_s: float | None = None
    ) -> int:
        """One more episode; returns its ticket. What it samples depends on `seed` and the question, not on the other episodes.

        `kbs`: the knowledge bases it may ask; None: all. `deadline_s`: seconds from now after which it is given up.
        """
        ticket = next(self._numbers)
        self._deadlines |= deadline_s is not None
        end = float("inf") if deadline_s is None else time.monotonic() + deadline_s
        self._running[ticket] = _Running(question, config, seed, kbs, end)
        self._waiting.append(ticket)
        return ticket

    def cancel(self, ticket: int) -> None:
        """Give an episode up: its event is `failed`, with what there was."""
        self._fail(ticket, "cancelled")

    def advance(self, wait_s: float = 0.0) -> list[EpisodeEvent]:
        """One tick. Where there is nothing to do but to wait for others, it waits up to `wait_s` seconds (`in_order`: for searches, as long as
        they take). Raises what a search raised that could not be made at all; a knowledge base that is away gives error passages."""
        with self.timeline.doing("encode"):
            self._give_up_late_ones()
            self._start()
        self._join_searches(wait_s)
        if self.engine.unfinished:
            with self.timeline.doing("generate"):
                found = self.engine.collect(min(wait_s, SEARCH_POLL_S) if self._searches.under_way else wait_s)
            with self.timeline.doing("encode"):
                self._take_in(found)
        events, self._events = self._events, []
        return events

    def close(self) -> None:
        """Give everything up that is under way."""
        if self._requests:
            self.engine.abort(list(self._requests))
        self._requests, self._running, self._events = {}, {}, []
        self._waiting.clear()
        self._searches.close()

    def _start(self) -> None:
        """Let episodes begin, in the order in which they were added, while there is room; the first one always may."""
        held = sum(running.tokens for running in self._running.values()) if self._waiting else 0
        while self._waiting and held < self.tokens:
            ticket = self._waiting.popleft()
            running = self._running[ticket]
            cards = {name: self._cards[name] for name in running.kbs} if running.kbs is not None else self._cards
            around = Surroundings(self.engine.policy, cards, running.config)
            running.log.started = time.perf_counter()
            self._width += running.width
            way = find_method(running.config.routing, cards)
            running.coroutine = way(running.question, around, random.Random(running.seed), running.log)
            self._go_on(ticket, None)
            held += running.tokens

    def _go_on(self, ticket: int, result: Any) -> None:
        """Hand the episode what it asked for, and take in what it asks for next."""
        running = self._running[ticket]
        assert running.coroutine is not None
        try:
            running.asked = running.coroutine.send(result)
        except StopIteration as stop:
            self._events.append(EpisodeEvent(ticket, "finished", group=running.log.groups[-1], trajectory=stop.value))
            self._width -= self._running.pop(ticket).width
            return
        except QuestionError as error:
            self._fail(ticket, str(error))
            return
        if isinstance(running.asked, Look):
            self._searches.ask(ticket, running.asked, running.config.passages)
            return
        state, config = running.asked.state, running.config
        sampling = sampling_of(config, state.kind)
        request = Request(state.prompt_ids, state.image, running.width, stream(running.seed, running.turns), sampling)
        running.turns, running.siblings = running.turns + 1, {}
        running.tokens = len(state.prompt_ids) + running.width * sampling.max_new_tokens
        try:
            running.request = self.engine.submit(request)
        except ValueError as error:
            self._fail(ticket, f"question {running.question.id}: {error}")
            return
        self._requests[running.request] = ticket

    def _take_in(self, found: list[Finished]) -> None:
        """Responses, and the turns that are complete with them, in the order of the episodes."""
        complete = []
        for finished in found:
            ticket = self._requests.get(finished.ticket)
            if ticket is None:  # its episode was given up
                continue
            running = self._running[ticket]
            running.siblings[finished.sibling] = finished.response
            if len(running.siblings) == running.width:
                complete.append(ticket)
                del self._requests[finished.ticket]
        for ticket in sorted(complete):
            self._sampled(ticket)

    def _sampled(self, ticket: int) -> None:
        """All siblings of a turn are there."""
        running, log, before = self._running[ticket], self._running[ticket].log, len(self._events)
        assert isinstance(running.asked, Sample)
        state, policy = running.asked.state, self.engine.policy
        self._go_on(ticket, TurnGroup(state, tuple(turn_of(state, running.siblings[i], policy) for i in range(running.width))))
        if state.kind == "plan":
            self._events.insert(before, EpisodeEvent(ticket, "planned", step=Step(log.plan, log.action), group=log.groups[-1]))
        elif state.kind == "answer" and running.config.routing != "all":
            self._events.insert(before, EpisodeEvent(ticket, "answered", step=log.steps[-1], group=log.groups[-1]))

    def _join_searches(self, wait_s: float) -> None:
        """Begin searches that are asked for, and hand out what is to be handed out now."""
        if self.join == "as_they_come":
            self._searches.begin()
            starved = not self.engine.unfinished
            with self.timeline.doing("search" if starved else "encode"):
                found = self._searches.arrived(wait_s if starved else 0.0)
            self._hand_out(found)
            return
        while True:
            starved = self.engine.unfinished <= min(self.slots, self._width * STARVED)
            if starved or self._searches.asked >= QUERIES_PER_SEARCH:
                self._searches.begin()
            if not starved or not self._searches.under_way:
                return
            with self.timeline.doing("search"):
                found = self._searches.oldest()
            self._hand_out(found)

    def _hand_out(self, found: list[tuple[int, list[Passage]]]) -> None:
        with self.timeline.doing("encode"):
            for ticket, passages in found:
                if ticket in self._running:
                    log = self._running[ticket].log
                    self._events.append(EpisodeEvent(ticket, "searched", step=Step(log.plan, log.action, tuple(passages))))
                    self._go_on(ticket, passages)

    def _give_up_late_ones(self) -> None:
        if not self._deadlines:
            return
        now = time.monotonic()
        for ticket in [ticket for ticket, running in self._running.items() if running.end <= now]:
            self._fail(ticket, f"question {self._running[ticket].question.id}: no answer within its deadline")

    def _fail(self, ticket: int, error: str) -> None:
        running = self._running.pop(ticket)
        if running.request in self._requests:
            del self._requests[running.request]
            self.engine.abort([running.request])
        if running.coroutine is None:
            self._waiting.remove(ticket)
        else:
            self._width -= running.width
        self._events.append(EpisodeEvent(ticket, "failed", trajectory=running.log.broken_off(running.question, error), error=error))


def roll_out(
    questions: Sequence[Question], engine: PolicyEngine, retriever: Searcher, config: RolloutConfig, seed: int
) -> list[Trajectory]:
    """Trajectories in the order of the questions; in `chain` mode `group_size` of each, side by side. Those that failed have an `error`.

    What an episode samples depends on (seed, question, episode) alone, not on what else is in the batch or which worker runs it.
    """
    pool = EpisodePool(engine, retriever, config.tokens_in_flight, slots=config.slots)
    add_all(pool, questions, config, seed)
    found: dict[int, Trajectory] = {}
    while pool.unfinished:
        found |= {event.ticket: event.trajectory for event in pool.advance(wait_s=1.0) if event.trajectory}
    pool.close()
    return [found[ticket] for ticket in sorted(found)]


def add_all(pool: EpisodePool, questions: Sequence[Question], config: RolloutConfig, seed: int) -> list[int]:
    """The episodes of an iteration; returns their tickets, those of one question side by side."""
    copies = config.group_size if config.mode == "chain" else 1
    deadline_s = config.episode_s or None
    return [
        pool.add(question, config, stream(seed, question.id, copy), deadline_s=deadline_s)
        for question in questions
        for copy in range(copies)
    ]
