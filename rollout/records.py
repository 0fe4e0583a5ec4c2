"""The words everybody uses: question, turn, state, group, step, trajectory.

A trajectory is a walk of an agent that answers one question. In each step it *plans* (asks a follow-up query and names a knowledge base, or
stops) and *answers* that query from what came back; the *final* turn answers the question. Every turn starts from a `State`: the exact
prompt that the policy saw. Turns that were sampled from the same state are siblings, and only siblings are compared with each other.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np

from retrieval_actors.records import Passage

TurnKind = Literal["plan", "answer", "final"]
UNKNOWN = "unknown"
"""What an answer turn says when the passages do not hold the answer."""


@dataclass(frozen=True)
class Image:
    """A picture, stored once per question; everything else refers to it by its key."""

    key: str
    """Hash of the encoded bytes."""
    data: bytes
    """PNG or JPEG."""

    @classmethod
    def of(cls, data: bytes) -> Image:
        return cls(key=hashlib.sha256(data).hexdigest()[:16], data=data)


@dataclass(frozen=True)
class GoldStep:
    """One thing that has to be found out. Gold steps are remaining needs, not a script: any order that meets them is right."""

    query: str
    kb: str
    """Name of the knowledge base that holds the answer (`text`, `text_image`, `table`)."""
    answer: str
    entities: tuple[str, ...] = ()
    """Words that the query must name (a country, a year); empty: taken from the capitalised words and numbers of `query`."""


@dataclass(frozen=True)
class Question:
    id: str
    text: str
    answers: tuple[str, ...]
    """Any of them is right."""
    image: Image | None = None
    gold_steps: tuple[GoldStep, ...] | None = None
    """What has to be found out, in one right order; () when nothing has to be; None when nobody knows."""
    family: str = ""
    """Kind of question (`text_one_hop`, `image_table`, ...): results are reported by it."""
    answer_range: tuple[float, float] | None = None
    """Numeric questions of InfoSeek: any number from the first to the second, both included, is right. `answers` then lists the numbers that the
    paper's evaluator accepts, which compares texts."""


@dataclass(frozen=True)
class Exchange:
    """What later turns remember of a step: the query, where it went, and the sub-answer. Passages are forgotten."""

    query: str
    kb: str
    answer: str


@dataclass(frozen=True)
class Turn:
    """One response of the policy, token in and token out: it is never decoded and encoded again on its way to the learner."""

    kind: TurnKind
    response_ids: np.ndarray
    """(tokens,) int32, with the end token where one was sampled."""
    logprobs: np.ndarray
    """(tokens,) float32, nats: log-probability of each token under the policy version that sampled it, at temperature 1."""
    finish_reason: Literal["stop", "length", "abort"]
    policy_version: int
    text: str
    """The response decoded without special tokens: for parsing and reading, never for training."""


@dataclass(frozen=True)
class State:
    """Where a turn starts from: all that the policy sees, and what the reward needs to judge it."""

    kind: TurnKind
    prompt_ids: np.ndarray
    """(tokens,) int32."""
    image: Image | None
    question: Question
    history: tuple[Exchange, ...] = ()
    query: str = ""
    """Answer turns: the follow-up query."""
    kb: str = ""
    """Answer turns: the knowledge base that was searched."""
    passages: tuple[Passage, ...] = ()
    """Answer turns: what came back, in the order in which the policy sees it."""
    target: GoldStep | None = None
    """Offline turns only: the recorded gold of this very turn."""

    @cached_property
    def key(self) -> str:
        """`state_key`: hash of the exact prompt token ids and the image. Turns are compared only when it is equal."""
        digest = hashlib.sha256(np.ascontiguousarray(self.prompt_ids, dtype=np.int32).tobytes())
        digest.update((self.image.key if self.image else "").encode())
        return digest.hexdigest()[:24]


@dataclass(frozen=True)
class TurnGroup:
    """Siblings: responses sampled from one state."""

    state: State
    turns: tuple[Turn, ...]
    trunk: int = 0
    """Index of the sibling from which the episode went on."""
    gains: tuple[float, ...] = ()
    """Answer turns, with `rollout.gold_gains`: by how much each sibling's sub-answer raised p(gold answer); empty: not measured."""

    @property
    def chosen(self) -> Turn:
        return self.turns[self.trunk]


@dataclass(frozen=True)
class Action:
    """What a well-formed plan turn decided: `kb` is the knowledge base to ask, or None to stop."""

    query: str
    kb: str | None


@dataclass(frozen=True)
class Step:
    plan: Turn | None
    """None for baselines that do not plan."""
    action: Action | None
    """None: the plan turn was malformed, which ends the retrieval."""
    passages: tuple[Passage, ...] = ()
    answer: Turn | None = None
    exchange: Exchange | None = None


@dataclass(frozen=True)
class Trajectory:
    """One episode: its trunk as `steps` and `final`, and every sibling that was sampled on the way in `groups`."""

    question: Question
    steps: tuple[Step, ...]
    final: Turn | None
    """None in offline mode, where single turns are recorded."""
    answer: str
    """The final answer, empty when the final turn was malformed."""
    groups: tuple[TurnGroup, ...]
    seconds: float = 0.0
    search_errors: int = 0
    error: str = ""
    """Why the episode was broken off (a prompt that does not fit, a deadline); empty: it was not. What was sampled until then is kept."""

    @property
    def retrievals(self) -> int:
        return sum(step.exchange is not None for step in self.steps)


@dataclass(frozen=True)
class TurnReward:
    """What a turn earned, and why."""

    total: float
    components: dict[str, float] = field(default_factory=dict)
    """What was measured, for metrics: some of it counts in the total, some only informs."""
    parts: dict[str, float] = field(default_factory=dict)
    """What adds up to `total`, weights included, for advantages by component; empty: the total is one part."""


@dataclass(frozen=True)
class ScoredTurn:
    """What the learner gets: one response, the state it started from, and what it earned."""

    state_key: str
    prompt_ids: np.ndarray
    image: Image | None
    turn: Turn
    reward: TurnReward
    episode: str
    """Id of the trajectory; turns of one episode share its outcome."""
    outcome: float
    """Reward of the final answer of the episode."""
    episode_group: str
    """Id of the question: episodes of one question are compared in `chain` mode."""
