"""What the driver needs to know of scored turns, in columns. Tokens, log-probs and pictures stay in Ray's object store, for the learner ranks."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from rollout.nan_check import refuse_turns
from rollout.records import ScoredTurn, TurnKind

KINDS: tuple[TurnKind, ...] = ("plan", "answer", "final")


class Route(NamedTuple):
    """What a plan turn that asks had to choose, and what it chose."""

    needed: tuple[str, ...]  # sorted: the knowledge bases that were right to name; empty: not known
    family: str  # of the question
    kb: str  # the one it named


@dataclass(frozen=True)
class ScoredSummary:
    """Scored turns, with tables of their states and episodes. Integers have the smallest type that fits: many are sent.
    (states,): state_keys, bytes; prompt_tokens, the length of the prompt; image_keys, bytes, empty for none. (episodes,): ids in the order of
    their first turns, the ids of their questions, and outcomes, float64, NaN for none. (turns,): places in the tables of states and episodes, and
    in `KINDS`; the length of the response, and whether it ended at its limit; the version that sampled its first token; the reward, float64, and
    the part of it that naming the knowledge base earned, NaN where all tokens have the same credit.
    For the exact gradient over routes: name_tokens, from the name of the knowledge base to the end, 0 where the rewards of the routes are unknown;
    prefixes, 1, 2, ..., equal where all before the name is, 0 where all routes earn the same; route_tokens, input tokens of the other names;
    best_routes, the number of the knowledge base that earns most, from 1; 0 like prefixes."""

    state_keys: np.ndarray
    prompt_tokens: np.ndarray
    image_keys: np.ndarray
    episodes: tuple[str, ...]
    questions: tuple[str, ...]
    outcomes: np.ndarray
    state: np.ndarray
    episode: np.ndarray
    kind: np.ndarray
    tokens: np.ndarray
    cut_off: np.ndarray
    policy_version: np.ndarray
    rewards: np.ndarray
    of_routes: np.ndarray
    name_tokens: np.ndarray
    prefixes: np.ndarray
    route_tokens: np.ndarray
    best_routes: np.ndarray
    components: Mapping[str, tuple[float, int]] = field(default_factory=dict)  # name -> sum over the turns that have it, and their number
    parts: tuple[Mapping[str, float], ...] = ()  # of each turn: the parts that add up to its reward; empty without `with_parts`
    routes: Mapping[Route, int] = field(default_factory=dict)  # of all plan turns that ask, judged or not -> their number
    versions: Mapping[int, int] = field(default_factory=dict)  # policy version -> number of tokens that it sampled

    @classmethod
    def of(cls, turns: Sequence[ScoredTurn], with_parts: bool = True) -> ScoredSummary:
        """Raises `NotFiniteError` for a reward, an outcome or a log-prob that is NaN or infinite."""
        refuse_turns(turns)
        states: dict[str, int] = {}
        episodes: dict[tuple[str, str], int] = {}
        state = [states.setdefault(turn.state_key, len(states)) for turn in turns]
        episode = [episodes.setdefault((turn.episode, turn.episode_group), len(episodes)) for turn in turns]
        first = dict(zip(reversed(state), reversed(turns), strict=True))
        images = [first[place].image for place in states.values()]
        outcomes = {place: turn.outcome for place, turn in zip(episode, turns, strict=True) if turn.outcome is not None}
        routes = [turn.turn.routes if turn.route_rewards else None for turn in turns]
        prefix_of, prefixes = [_prefix_of(turn) for turn in turns], dict[tuple[str | bytes, ...] | None, int]({None: 0})
        components: dict[str, list[float]] = {}
        for turn in turns:
            for name, value in turn.reward.components.items():
                components.setdefault(name, []).append(value)
        return cls(
            state_keys=np.array([key.encode() for key in states], np.bytes_),
            prompt_tokens=smallest_integers([len(first[place].prompt_ids) for place in states.values()]),
            image_keys=np.array([image.key.encode() if image else b"" for image in images], np.bytes_),
            episodes=tuple(name for name, _ in episodes),
            questions=tuple(question for _, question in episodes),
            state=smallest_integers(state),
            episode=smallest_integers(episode),
            kind=smallest_integers([KINDS.index(turn.turn.kind) for turn in turns]),
            tokens=smallest_integers([len(turn.turn.response_ids) for turn in turns]),
            cut_off=np.array([turn.turn.finish_reason == "length" for turn in turns], bool),
            policy_version=smallest_integers([turn.turn.versions[0][0] for turn in turns]),
            rewards=np.array([turn.reward.total for turn in turns], np.float64),
            of_routes=np.array([np.nan if turn.reward.route is None else turn.reward.route for turn in turns], np.float64),
            name_tokens=smallest_integers([len(found.ids[found.sampled]) if found else 0 for found in routes]),
            prefixes=smallest_integers([prefixes.setdefault(prefix, len(prefixes)) for prefix in prefix_of]),
            route_tokens=smallest_integers([sum(len(ids) - 1 for ids in found.others) if found else 0 for found in routes]),
            best_routes=smallest_integers(
                [1 + int(np.argmax(turn.route_rewards)) if prefix else 0 for turn, prefix in zip(turns, prefix_of, strict=True)]
            ),
            outcomes=np.array([outcomes.get(place, np.nan) for place in range(len(episodes))], np.float64),
            components={name: (sum(values), len(values)) for name, values in components.items()},
            parts=tuple(turn.reward.parts or {"total": turn.reward.total} for turn in turns) if with_parts else (),
            versions=sum((Counter(dict(turn.turn.versions)) for turn in turns), Counter[int]()),
        )

    @classmethod
    def joined(cls, summaries: Sequence[ScoredSummary]) -> ScoredSummary:
        """The turns of all summaries, in order. A state that is in several summaries has several entries with the same key."""
        if not summaries:
            return cls.of([])
        states = np.cumsum([0, *(len(summary.state_keys) for summary in summaries)])
        episodes = np.cumsum([0, *(len(summary.episodes) for summary in summaries)])
        columns = {
            name: np.concatenate([getattr(summary, name) for summary in summaries])
            for name in (
                *("state_keys", "prompt_tokens", "image_keys", "kind", "tokens", "cut_off", "policy_version", "rewards", "outcomes"),
                *("of_routes", "name_tokens", "route_tokens", "best_routes"),
            )
        }
        prefixes = np.cumsum([0, *(int(summary.prefixes.max(initial=0)) for summary in summaries)])
        components: dict[str, tuple[float, int]] = {}
        for name, (total, count) in [entry for summary in summaries for entry in summary.components.items()]:
            before = components.get(name, (0.0, 0))
            components[name] = before[0] + total, before[1] + count
        return cls(
            **columns,
            episodes=tuple(name for summary in summaries for name in summary.episodes),
            questions=tuple(name for summary in summaries for name in summary.questions),
            state=np.concatenate([summary.state.astype(int) + first for summary, first in zip(summaries, states, strict=False)]),
            episode=np.concatenate([summary.episode.astype(int) + first for summary, first in zip(summaries, episodes, strict=False)]),
            prefixes=np.concatenate(
                [np.where(s.prefixes, s.prefixes.astype(int) + first, 0) for s, first in zip(summaries, prefixes, strict=False)]
            ),
            components=components,
            parts=tuple(part for summary in summaries for part in summary.parts),
            routes=sum((Counter(summary.routes) for summary in summaries), Counter[Route]()),
            versions=sum((Counter(summary.versions) for summary in summaries), Counter[int]()),
        )

    def __len__(self) -> int:
        return len(self.rewards)

    @property
    def states(self) -> np.ndarray:
        """(turns,) int64: the same number for equal state keys, in the order of the keys."""
        return np.unique(self.state_keys, return_inverse=True)[1][self.state]

    @property
    def question_of(self) -> list[str]:
        return [self.questions[place] for place in self.episode.tolist()]

    def episode_outcomes(self) -> dict[int, float]:
        """Place of an episode -> its outcome, where it has one."""
        return {place: outcome for place, outcome in enumerate(self.outcomes.tolist()) if not math.isnan(outcome)}

    def with_suffix(self, suffix: str) -> ScoredSummary:
        return replace(self, episodes=tuple(name + suffix for name in self.episodes)) if suffix else self


def _prefix_of(turn: ScoredTurn) -> tuple[str | bytes, ...] | None:
    """All that the exact gradient over routes depends on; None where it is 0, or the rewards of the routes are not known."""
    routes, rewards = turn.turn.routes, turn.route_rewards
    if routes is None or min(rewards, default=0.0) == max(rewards, default=0.0):
        return None
    return turn.state_key, turn.turn.response_ids[: routes.start].tobytes(), *(ids.tobytes() for ids in routes.ids)


def smallest_integers(values: Sequence[int] | np.ndarray) -> np.ndarray:
    """The values, none negative, in the smallest unsigned type that holds them all."""
    found = np.array(values, np.int64)
    return found.astype(np.min_scalar_type(int(found.max(initial=0))))
