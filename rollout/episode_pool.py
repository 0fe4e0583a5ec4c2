"""Many concurrent episodes over one engine and one retriever. Searches run in the background. When their results are taken:

- `in_order` (default): the oldest batch of searches, whenever the engine runs out of work, never by the clock. So batches, and every bit of the
  trajectories, do not depend on how fast a knowledge base answers.
- `as_they_come`: at the first call of `advance` after they have arrived, for serving.
"""

from __future__ import annotations

import itertools
import math
import random
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from retrieval_actors.records import Passage
from rollout.config import RolloutConfig
from rollout.engines.base import Engine, Request, Response, Sampling
from rollout.episode import Branches, EpisodeState, QuestionError, Requests, derive_seed, episode
from rollout.follow_ups import follow_up
from rollout.methods import find_method
from rollout.records import Question, State, Step, Trajectory, TurnGroup
from rollout.route_values import look_at_routes
from rollout.searches import Searcher, Searches, SearchRequest
from rollout.timeline import Timeline

Join = Literal["in_order", "as_they_come"]
QUERIES_PER_SEARCH = 8  # `in_order`: a search begins when this many queries wait, or when the engine runs out of work
STARVED = 0.25
"""`in_order`: the engine runs out of work when it has free slots, and at most this share of the responses that the running episodes can ask for."""
SEARCH_POLL_S = 0.005  # longest wait for an engine of another process while searches are running


@dataclass(frozen=True)
class EpisodeEvent:
    """What happened in the episode with this ticket: the step so far; at the end the trajectory (`failed`: the turns until then, and `error`)."""

    ticket: int
    kind: Literal["rewritten", "planned", "searched", "answered", "finished", "failed"]
    step: Step | None = None
    group: TurnGroup | None = None  # `rewritten`, `planned`, `answered`, `finished`: the siblings
    trajectory: Trajectory | None = None
    error: str | None = None
    question: str = ""  # `rewritten`: in its new words; as it was asked, if there are none


@dataclass
class _Running:
    state: EpisodeState
    seed: int
    end: float  # deadline, by `time.monotonic`
    earlier: Sequence[tuple[str, str]] = ()  # questions and answers of its chat
    coroutine: Requests | None = None  # None: the episode waits for room
    asked: State | SearchRequest | Branches | None = None
    request: int | None = None  # the engine's ticket of the last turn
    siblings: dict[int, Response] = field(default_factory=dict)  # responses of the last turn so far
    turns: int = 0
    tokens: int = 0  # of the last turn: prompt, and room for the responses of all siblings
    parent: tuple[int, int] | None = None  # of a branch: ticket of the episode that it branches off, and its place among the branches
    branches: dict[int, Any] = field(default_factory=dict)  # place of a branch that has ended -> what it returned

    @property
    def width(self) -> int:
        """Siblings of the last turn."""
        config, kind = self.state.config, self.asked.kind if isinstance(self.asked, State) else ""
        if config.mode == "chain" or (kind in config.unjudged_without_gold and self.state.question.gold_steps is None):
            return 1
        return (config.plan_siblings if kind == "plan" else 0) or config.group_size


class EpisodePool:
    """`add` questions, then `advance` until nothing is `unfinished`."""

    def __init__(
        self,
        engine: Engine,
        retriever: Searcher,
        tokens: int = 262144,
        join: Join = "in_order",
        slots: int = 0,
        timeline: Timeline | None = None,
    ):
        """`tokens`: bound on the last turns (with room for responses) of running episodes before another begins. `slots`: those of the engine."""
        self.engine, self.tokens, self.join, self.slots = engine, tokens, join, slots
        self.timeline = timeline or Timeline()  # `encode` (prompts, parsing), `generate` (the engine), `search` (waiting for passages)
        self._cards = {card.name: card for card in retriever.catalog}
        self._searches = Searches(retriever)
        self._numbers = itertools.count()
        self._waiting: deque[int] = deque()
        self._running: dict[int, _Running] = {}
        self._requests: dict[int, int] = {}  # the engine's ticket -> ticket of the episode
        self._events: list[EpisodeEvent] = []

    @property
    def unfinished(self) -> int:
        """Number of unfinished episodes, and of events that `advance` has not returned yet."""
        return len(self._running) + len(self._events)

    def add(
        self,
        question: Question,
        config: RolloutConfig,
        seed: int,
        *,
        kbs: Sequence[str] | None = None,
        deadline_s: float | None = None,
        earlier: Sequence[tuple[str, str]] = (),
    ) -> int:
        """One more episode; returns its ticket. `kbs`: the knowledge bases it may search (default: all). `deadline_s`: seconds until it fails.
        `earlier`: the questions and answers of a chat that the question follows on from."""
        ticket = next(self._numbers)
        end = math.inf if deadline_s is None else time.monotonic() + deadline_s
        cards = self._cards if kbs is None else {name: self._cards[name] for name in kbs}
        state = EpisodeState(question, self.engine.policy, cards, config, random.Random(seed))
        self._running[ticket] = _Running(state, seed, end, earlier)
        self._waiting.append(ticket)
        return ticket

    def add_all(self, questions: Sequence[Question], config: RolloutConfig, seed: int, repeats: Sequence[int]) -> list[int]:
        """The episodes of an iteration; returns their tickets, question by question. `repeats`: see `repeats_of`."""
        copies = config.group_size if config.mode == "chain" else 1
        drawn = [(q, copies * repeat + copy) for q, repeat in zip(questions, repeats, strict=True) for copy in range(copies)]
        return [self.add(q, config, derive_seed(seed, q.id, number), deadline_s=config.episode_s or None) for q, number in drawn]

    def cancel(self, ticket: int) -> None:
        self._fail(ticket, "cancelled")

    def advance(self, wait_s: float = 0.0) -> list[EpisodeEvent]:
        """Advance all episodes a little; returns new events. If idle, waits up to `wait_s` seconds for the engine or searches (`in_order`: for
        searches without a limit). Raises what a search raised."""
        with self.timeline.doing("encode"):
            now = time.monotonic()
            for ticket in [ticket for ticket, running in self._running.items() if running.end <= now]:
                self._fail(ticket, f"question {self._running[ticket].state.question.id}: no answer within its deadline")
            self._start()
        self._join_searches(wait_s)
        if self.engine.unfinished:
            with self.timeline.doing("generate"):
                found = self.engine.collect(min(wait_s, SEARCH_POLL_S) if self._searches.under_way else wait_s)
            with self.timeline.doing("encode"):
                self._take_responses(found)
        events, self._events = self._events, []
        return events

    def close(self) -> None:
        """Drop all episodes. Also works after an exception."""
        self._searches.close()
        self.engine.abort(list(self._requests))
        self._waiting.clear()
        self._requests, self._running, self._events = {}, {}, []

    def _start(self) -> None:
        """Begin waiting episodes, in the order in which they were added, while there is room. If none is running, one always begins."""
        held = sum(running.tokens for running in self._running.values()) if self._waiting else 0
        while self._waiting and held < self.tokens:
            ticket = self._waiting.popleft()
            running = self._running[ticket]
            running.state.started = time.perf_counter()
            find = find_method(running.state.config.routing, running.state.cards)
            run = partial(episode, look=look_at_routes) if running.state.config.values.measured else find
            running.coroutine = follow_up(running.state, running.earlier, run) if running.earlier else run(running.state)
            self._continue(ticket, None)
            held += running.tokens

    def _continue(self, ticket: int, result: Any) -> None:
        """Send the episode the result of its last request, and take its next one."""
        running = self._running[ticket]
        assert running.coroutine is not None
        if running.asked is not None and not isinstance(running.asked, Branches):
            running.state.ends.append(running.state.seconds)
        try:
            running.asked = running.coroutine.send(result)
        except StopIteration as stop:
            del self._running[ticket]
            if running.parent:
                return self._take_branch(running.parent, stop.value)
            self._events.append(EpisodeEvent(ticket, "finished", group=running.state.groups[-1], trajectory=stop.value))
            return
        except QuestionError as error:
            return self._fail(ticket, str(error))
        if isinstance(running.asked, Branches):
            return self._branch_off(ticket, running.asked)
        if isinstance(running.asked, SearchRequest):
            self._searches.waiting.append((ticket, running.asked, running.state.config.passages))
            return
        state, sampling = running.asked, Sampling.of(running.state.config)
        request = Request(state.prompt_ids, state.image, running.width, derive_seed(running.seed, running.turns), sampling)
        running.turns, running.siblings = running.turns + 1, {}
        running.tokens = len(state.prompt_ids) + running.width * sampling.max_new_tokens
        try:
            running.request = self.engine.submit(request)
        except ValueError as error:
            return self._fail(ticket, f"question {running.state.question.id}: {error}")
        self._requests[running.request] = ticket

    def _branch_off(self, ticket: int, asked: Branches) -> None:
        """Begin the branches at once: their episode waits for them. Its deadline is theirs."""
        running = self._running[ticket]
        running.branches, running.tokens = {}, 0
        started = {next(self._numbers): (place, branch) for place, branch in enumerate(asked.branches)}
        for number, (place, branch) in started.items():
            self._running[number] = _Running(
                branch.state, branch.seed, math.inf, coroutine=branch.run(branch.state), parent=(ticket, place)
            )
        for number in started:
            self._continue(number, None)

    def _take_branch(self, parent: tuple[int, int], result: Any) -> None:
        ticket, place = parent
        running = self._running[ticket]
        assert isinstance(running.asked, Branches)
        running.branches[place] = result
        if len(running.branches) == len(running.asked.branches):
            self._continue(ticket, [running.branches[i] for i in range(len(running.branches))])

    def _take_responses(self, found: list[Response]) -> None:
        """Continue the episodes whose turn is complete, in the order of their tickets."""
        complete = []
        for response in found:
            if (ticket := self._requests.get(response.ticket)) is None:  # its episode has failed
                continue
            running = self._running[ticket]
            running.siblings[response.sibling] = response
            if len(running.siblings) == running.width:
                complete.append(ticket)
                del self._requests[response.ticket]
        for ticket in sorted(complete):
            running, before = self._running[ticket], len(self._events)
            asked, state, policy = running.asked, running.state, self.engine.policy
            assert isinstance(asked, State)
            self._continue(ticket, TurnGroup(asked, tuple(running.siblings[i].turn(asked.kind, policy) for i in range(running.width))))
            if running.parent:
                continue
            if asked.kind == "rewrite":
                self._events.insert(before, EpisodeEvent(ticket, "rewritten", group=state.groups[-1], question=state.question.text))
            elif asked.kind == "plan":
                self._events.insert(before, EpisodeEvent(ticket, "planned", step=Step(state.plan, state.action), group=state.groups[-1]))
            elif asked.kind == "answer" and state.config.routing != "all":
                self._events.insert(before, EpisodeEvent(ticket, "answered", step=state.steps[-1], group=state.groups[-1]))

    def _join_searches(self, wait_s: float) -> None:
        """Begin the waiting searches, and pass found passages to their episodes."""
        if self.join == "as_they_come":
            self._searches.begin()
            starved = not self.engine.unfinished
            with self.timeline.doing("search" if starved else "encode"):
                found = self._searches.arrived(wait_s if starved else 0.0)
            self._hand_out(found)
            return
        while True:
            width = sum(running.width for running in self._running.values() if running.coroutine is not None)
            starved = self.engine.unfinished <= min(self.slots, width * STARVED)
            if starved or len(self._searches.waiting) >= QUERIES_PER_SEARCH:
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
                    state, parent = self._running[ticket].state, self._running[ticket].parent
                    if not parent:
                        self._events.append(EpisodeEvent(ticket, "searched", step=Step(state.plan, state.action, tuple(passages))))
                    self._continue(ticket, passages)

    def _fail(self, ticket: int, error: str) -> None:
        running = self._running.pop(ticket)
        if running.request in self._requests:
            del self._requests[running.request]
            self.engine.abort([running.request])
        if running.coroutine is None:
            self._waiting.remove(ticket)
        if running.parent and running.parent[0] in self._running:
            return self._take_branch(running.parent, None)
        for branch in [number for number, other in self._running.items() if other.parent and other.parent[0] == ticket]:
            self._fail(branch, error)
        if running.parent:
            return
        self._events.append(EpisodeEvent(ticket, "failed", trajectory=running.state.trajectory(error=error), error=error))
