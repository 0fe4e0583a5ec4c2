"""The records that every room uses: question, turn, state, group, step, trajectory.

A trajectory answers one question. In each step the policy *plans* (writes a follow-up query and names a knowledge base, or stops) and *answers*
that query from the passages that were found; the *final* turn answers the question. Turns sampled from the same `State`, the exact prompt, are
siblings, and only siblings are compared.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np

from retrieval_actors.records import Passage

TurnKind = Literal["plan", "answer", "final", "rewrite"]  # `rewrite`: of a chat that is served, see follow_ups.py
FinishReason = Literal["stop", "length"]
UNKNOWN = "unknown"  # what an answer turn says when the passages do not hold the answer
OUTSIDE = "outside"  # family of questions whose answer is in no knowledge base: only abstaining is right


@dataclass(frozen=True)
class Image:
    """A picture, PNG or JPEG; `key` is a hash of its bytes."""

    key: str
    data: bytes

    @classmethod
    def of(cls, data: bytes) -> Image:
        return cls(key=hashlib.sha256(data).hexdigest()[:16], data=data)


@dataclass(frozen=True)
class Message:
    """One prompt before the chat template; `image`: whether the question's picture is shown, `image_last`: after the user's text."""

    system: str
    user: str
    image: bool
    image_last: bool = False


@dataclass(frozen=True)
class GoldStep:
    """One fact that the question needs. Gold steps are needs, not a script: any order that meets them is right."""

    query: str
    kbs: Sequence[str]  # names of the knowledge bases that hold the answer: any of them is right. A tuple; one can be given as text
    answer: str
    entities: tuple[str, ...] = ()  # names that the query must hold (a country, a year); empty: capitalised words and numbers of `query`

    def __post_init__(self) -> None:
        named = (self.kbs,) if isinstance(self.kbs, str) else self.kbs
        object.__setattr__(self, "kbs", tuple(kb for kb in named if kb))


@dataclass(frozen=True)
class Fault:
    """How knowledge bases are broken for one question (faults.py)."""

    kind: str  # a name of `FAULTS`
    kb: str  # which one is broken; empty: all
    true: tuple[str, ...]  # what stands in the passages
    false: tuple[str, ...]  # what stands in other passages of this kind: two texts
    query: str  # what another question asks


@dataclass(frozen=True)
class Question:
    id: str
    text: str
    answers: tuple[str, ...]  # any of them is right
    image: Image | None = None
    gold_steps: tuple[GoldStep, ...] | None = None  # the facts it needs, in one right order; None: unknown
    family: str = ""  # kind of question (`text_one_hop`, `image_table`, ...): results are reported for each
    answer_range: tuple[float, float] | None = None  # numeric questions of InfoSeek: any number in this closed range is right, too
    fault: Fault | None = None  # its searches find what a broken knowledge base would


@dataclass(frozen=True)
class Exchange:
    """What later prompts show of a step: query and sub-answer, not the passages."""

    query: str
    kb: str
    answer: str
    failed: bool = False  # its search failed, at least in part: later turns cannot be judged


@dataclass(frozen=True)
class AllowedTokens:
    """The token ids that `top_k` and `top_p` allowed for each token of a response."""

    ids: np.ndarray  # (ids,) int32: those for the first token, then those for the second, ...
    sizes: np.ndarray  # (tokens,) int32: how many ids each token has in `ids`


@dataclass(frozen=True)
class RouteNames:
    """A plan turn that asks, with the name of every knowledge base in its place (route_names.py). No `ids`: its place was not found."""

    start: int = 0  # place in the response of the first token after `<ret>`
    names: tuple[str, ...] = ()  # retriever names, as the policy writes them
    ids: tuple[np.ndarray, ...] = ()  # for each name (tokens,) int32: the name and the rest of the turn
    sampled: int = 0  # which of them the turn has; its ids are those of the response

    @property
    def others(self) -> list[np.ndarray]:
        return [ids for i, ids in enumerate(self.ids) if i != self.sampled]


@dataclass(frozen=True)
class Turn:
    """One response of the policy. Its ids go to the learner as they are, never decoded and encoded again."""

    kind: TurnKind
    response_ids: np.ndarray  # (tokens,) int32, with the end token where one was sampled
    logprobs: np.ndarray  # (tokens,) float32, nats: under the policy that sampled them, at `temperature` and among the `allowed` tokens
    finish_reason: FinishReason
    policy_version: int
    text: str  # decoded without special tokens: for parsing and reading, never for training
    temperature: float = 1.0  # 1 for greedy responses. The learner divides its logits by it.
    allowed: AllowedTokens | None = None  # None: the whole vocabulary; at a temperature other than 1 without `Policy.banned_token_ids`
    routes: RouteNames | None = None  # None: it does not ask, or `rollout.record_routes` is off
    earlier: tuple[tuple[int, int], ...] = ()
    """(policy version, tokens): older versions that sampled its first tokens (`rollout.partial`); `policy_version` sampled the rest."""

    @property
    def versions(self) -> tuple[tuple[int, int], ...]:
        """(policy version, tokens), in the order of the tokens: who sampled them."""
        return *self.earlier, (self.policy_version, len(self.response_ids) - sum(tokens for _, tokens in self.earlier))


@dataclass(frozen=True)
class State:
    """What a turn starts from: the prompt, and what the reward needs to judge the response."""

    kind: TurnKind
    prompt_ids: np.ndarray  # (tokens,) int32
    image: Image | None
    question: Question
    history: tuple[Exchange, ...] = ()
    query: str = ""  # answer turns: the follow-up query
    kb: str = ""  # answer turns: the knowledge base that was searched
    passages: tuple[Passage, ...] = ()  # answer turns: what was found, in the order of the prompt
    target: GoldStep | None = None  # offline turns: the recorded gold of this turn

    @property
    def after_failure(self) -> bool:
        """Whether a search failed before or in this turn: no response can be judged."""
        return any(passage.error for passage in self.passages) or any(exchange.failed for exchange in self.history)

    @cached_property
    def key(self) -> str:
        """`state_key`: hash of prompt token ids and image. Turns are compared only where it is equal."""
        digest = hashlib.sha256(np.ascontiguousarray(self.prompt_ids, dtype=np.int32).tobytes())
        digest.update((self.image.key if self.image else "").encode())
        return digest.hexdigest()[:24]


@dataclass(frozen=True)
class QueryValues:
    """What a query would bring from each of `PlanValues.kbs`: the sub-answer, and the value of the state with it, less the price of the search."""

    query: str
    answers: tuple[str, ...]
    values: tuple[float, ...]
    unknown: float  # value of the state in which the query was answered `unknown`


@dataclass(frozen=True)
class PlanValues:
    """What a plan turn could bring, for every distinct query of its siblings (route_values.py). asked = reused + sampled + failed."""

    kbs: tuple[str, ...]
    queries: tuple[QueryValues, ...]  # those whose every search and turn succeeded
    stop: float | None  # value of stopping here; None: it failed, and no query has values
    asked: int  # values: of stopping, and for each query of every knowledge base and of `unknown`
    reused: int  # those of a state that another one, or an earlier turn, has valued
    sampled: int  # states that were valued anew
    failed: int  # those of queries with a failed search or turn
    tokens: int  # sampled to measure them

    @cached_property
    def spread(self) -> float:
        """Between the best and the worst of all that the siblings could do; 0 without values."""
        found = [value for query in self.queries for value in query.values]
        return max(*found, self.stop) - min(*found, self.stop) if found and self.stop is not None else 0.0


@dataclass(frozen=True)
class TurnGroup:
    """Siblings: responses sampled from one state."""

    state: State
    turns: tuple[Turn, ...]
    trunk: int = 0  # index of the sibling that the episode continued from
    gains: tuple[float, ...] = ()  # information gain of each sibling, of answer turns with `rollout.gold_gains`; empty: not measured
    values: PlanValues | None = None  # of plan turns in which a sibling asks, with `rollout.values.measured`

    @property
    def chosen(self) -> Turn:
        return self.turns[self.trunk]


@dataclass(frozen=True)
class Action:
    """The decision of a well-formed plan turn: search knowledge base `kb`, or stop (None)."""

    query: str
    kb: str | None


@dataclass(frozen=True)
class Step:
    plan: Turn | None  # None for baselines that do not plan
    action: Action | None  # None: the plan turn was malformed, which ends retrieval
    passages: tuple[Passage, ...] = ()
    answer: Turn | None = None
    exchange: Exchange | None = None
    support: tuple[float, ...] = ()
    """For each passage, by how much leaving it out lowers the policy's probability of the answer turn; empty: not measured, or `unknown`."""


@dataclass(frozen=True)
class Trajectory:
    """One episode: its trunk in `steps` and `final`, all sampled siblings in `groups`."""

    question: Question
    steps: tuple[Step, ...]
    final: Turn | None  # None in offline mode
    answer: str  # empty when the final turn was malformed
    groups: tuple[TurnGroup, ...]
    seconds: float = 0.0
    search_errors: int = 0
    error: str = ""  # why the episode failed (prompt too long, deadline); empty: it did not. The turns sampled until then are kept.
    ends: tuple[float, ...] = field(default=(), compare=False)  # seconds from its start to the end of each turn and search, in their order
    confidence: float | None = None  # probability that the answer is right (rollout/confidence.py); None: not calibrated

    @property
    def whole(self) -> bool:
        """Whether it finished and every search succeeded; otherwise it has no outcome."""
        return not self.error and not self.search_errors

    @property
    def retrievals(self) -> int:
        return sum(step.exchange is not None for step in self.steps)


@dataclass(frozen=True)
class TurnReward:
    total: float
    components: dict[str, float] = field(default_factory=dict)  # for metrics; not all of them count in the total
    parts: dict[str, float] = field(default_factory=dict)  # weighted, their sum is `total`; for advantages by component; empty: one part
    route: float | None = None  # the part of `total` that naming the knowledge base earned; None: all tokens have the same credit


@dataclass(frozen=True)
class ScoredTurn:
    """One response with its prompt and reward, as the learner gets it."""

    state_key: str
    prompt_ids: np.ndarray
    image: Image | None
    turn: Turn
    reward: TurnReward
    episode: str  # id of the trajectory; turns of one episode share its outcome
    outcome: float | None  # reward of the final answer; None if the episode or a search failed, or there is no gold answer
    episode_group: str  # id of the question: its episodes are compared in `chain` mode
    route_rewards: tuple[float, ...] = ()  # of the turn with each of `turn.routes.names`; empty: not known


@dataclass(frozen=True)
class RecordedTurn:
    """One turn of a trajectory in a step data set (`offline` mode): its whole prompt, and its gold."""

    question: Question
    kind: TurnKind
    system: str
    user: str
    target: GoldStep  # plan turns: gold query and knowledge bases (none: stop). Answer and final turns: the gold answer.
    image: Image | None = None
    image_first: bool = False

    @property
    def message(self) -> Message:
        return Message(self.system, self.user, self.image is not None, not self.image_first)
