"""Stored episodes under another reward, and searched again in other knowledge bases: in this process, without Ray, a policy or a GPU."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from experiments.evaluation.recorded_episodes import RecordedEpisode
from retrieval_actors.embedders.registry import build_embedder
from retrieval_actors.index.exact import merge_top_k
from retrieval_actors.knowledge_base import KnowledgeBase
from retrieval_actors.records import Passage, Query
from rewards.actor import batched_similarity, score_trajectory, texts_to_compare
from rewards.config import RewardConfig
from rollout.need_matcher import NeedMatcher, need_matcher
from rollout.needs import asked_need, holds_answer, prepare
from rollout.records import Exchange, Question, TurnReward


@dataclass(frozen=True)
class ReplayedTurn:
    """One turn, with what it was paid and what it would have been paid; None: not judged."""

    stored: str
    kind: str
    question: Question
    group: tuple[int, int]  # (episode, place of its group in it): siblings have the same
    text: str
    times: int  # equal siblings
    paid: float | None
    paid_parts: Mapping[str, float]
    again: TurnReward | None

    @property
    def both(self) -> tuple[float, float] | None:
        return None if self.paid is None or self.again is None else (self.paid, self.again.total)


@dataclass(frozen=True)
class SearchedAgain:
    question: Question
    exchange: Exchange
    before: tuple[Passage, ...]
    now: tuple[Passage, ...]
    held_before: bool | None  # whether a passage holds the answer that the query asks for; None: it asks for no gold step
    holds_now: bool | None

    @property
    def same_first(self) -> bool:
        return [passage.text for passage in self.before[:1]] == [passage.text for passage in self.now[:1]]


class Embedding:
    """What rewards compare texts with."""

    def __init__(self, name: str):
        self._embedder = build_embedder(name)

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        return self._embedder.embed_queries([Query(text) for text in texts])


def score_again(
    episodes: Sequence[RecordedEpisode], config: RewardConfig, retrievers: Mapping[str, str], embedding: Any
) -> Iterator[ReplayedTurn]:
    """All stored turns. `embedding`: with a method `embed`. Raises `RewardError`."""
    trajectories = [episode.trajectory for episode in episodes]
    prepare(trajectories, need_matcher(config.need_calibration))
    texts = [text for trajectory in trajectories for text in texts_to_compare(trajectory, retrievers, config)]
    similarity = batched_similarity(texts, embedding)
    for number, episode in enumerate(episodes):
        rewards = {id(found.turn): found.reward for found in score_trajectory(episode.trajectory, similarity, config, retrievers)}
        for place, (group, siblings) in enumerate(zip(episode.trajectory.groups, episode.siblings, strict=True)):
            for turn, sibling in zip(group.turns, siblings, strict=True):
                told = episode.stored, turn.kind, episode.trajectory.question, (number, place), turn.text
                yield ReplayedTurn(*told, sibling["times"], sibling["reward"], sibling["parts"], rewards.get(id(turn)))


def search_again(
    episodes: Sequence[RecordedEpisode], folders: Mapping[str, str], k: int, calibration: str = ""
) -> tuple[list[RecordedEpisode], list[SearchedAgain]]:
    """The episodes with passages from `folders` (knowledge base -> folder) in place of the recorded ones, and each of these searches. Answer turns
    that read other passages are left out. Raises KnowledgeBaseError; ValueError for an embedder that is not available."""
    matcher, found = need_matcher(calibration), dict[tuple[int, int], tuple[Passage, ...]]()
    for kb, folder in folders.items():
        asked = [
            ((number, place), step.exchange.query, episode.trajectory.question)
            for number, episode in enumerate(episodes)
            for place, step in enumerate(episode.trajectory.steps)
            if step.exchange and step.exchange.kb == kb
        ]
        queries = [Query(query, question.image.data if question.image else None) for _, query, question in asked]
        found |= zip((where for where, _, _ in asked), _search(kb, KnowledgeBase.open(folder), queries, k), strict=True)
    changed, searches = [], list[SearchedAgain]()
    for number, episode in enumerate(episodes):
        steps = list(episode.trajectory.steps)
        for place, step in enumerate(steps):
            if step.exchange and (now := found.get((number, place))) is not None:
                searches.append(_compared(episode.trajectory.question, step.exchange, step.passages, now, matcher))
                steps[place] = replace(step, passages=now, exchange=replace(step.exchange, failed=False))
        changed.append(_with_steps(episode, steps))
    return changed, searches


def _search(kb: str, base: KnowledgeBase, queries: Sequence[Query], k: int) -> list[tuple[Passage, ...]]:
    """The k best passages of each query, by vectors alone."""
    if not queries:
        return []
    vectors, shards = build_embedder(base.card.embedder).embed_queries(queries), [base.shard(i) for i in range(base.card.shards)]
    hits = [(scores, np.where(rows >= 0, rows + shard.first, -1)) for shard in shards for scores, rows in [shard.search(vectors, k)]]
    scores, positions = merge_top_k(hits, k)
    firsts = [shard.first for shard in shards]

    def passage(position: int, score: float) -> Passage:
        shard = shards[int(np.searchsorted(firsts, position, side="right")) - 1]
        row = shard.table.slice(position - shard.first, 1).select(["id", "text", "title"]).to_pylist()[0]
        return Passage(**row, kb=kb, score=score)

    pairs = zip(positions.tolist(), scores.tolist(), strict=True)
    return [tuple(passage(position, score) for position, score in zip(*pair, strict=True) if position >= 0) for pair in pairs]


def _compared(
    question: Question, exchange: Exchange, before: tuple[Passage, ...], now: tuple[Passage, ...], matcher: NeedMatcher
) -> SearchedAgain:
    need = asked_need(exchange.query, question.gold_steps or (), matcher)
    held = [None if need is None else any(holds_answer(passage, need) for passage in passages) for passages in (before, now)]
    return SearchedAgain(question, exchange, before, now, *held)


def _with_steps(episode: RecordedEpisode, steps: list[Any]) -> RecordedEpisode:
    trajectory, searched = episode.trajectory, iter([step for step in steps if step.exchange])
    exchanges = tuple(step.exchange for step in steps if step.exchange)
    kept = []
    for group, siblings in zip(trajectory.groups, episode.siblings, strict=True):
        state = replace(group.state, history=exchanges[: len(group.state.history)])
        if state.kind == "answer" and _texts(state.passages) != _texts(next(searched).passages):
            continue
        kept.append((replace(group, state=state), siblings))
    groups, siblings_of = tuple(group for group, _ in kept), tuple(siblings for _, siblings in kept)
    failed = sum(any(passage.error for passage in step.passages) for step in steps)
    return replace(episode, trajectory=replace(trajectory, steps=tuple(steps), groups=groups, search_errors=failed), siblings=siblings_of)


def _texts(passages: Sequence[Passage]) -> list[str]:
    return [passage.text for passage in passages]


def correlation(pairs: Sequence[tuple[float, float]]) -> float | None:
    """Pearson's; None where one of the two does not vary."""
    values = np.array(pairs, float).reshape(-1, 2)
    return float(np.corrcoef(values.T)[0, 1]) if len(values) > 1 and (values.std(0) > 1e-9).all() else None


def other_best_sibling(turns: Sequence[ReplayedTurn]) -> tuple[int, int]:
    """(groups in which no best sibling of the one reward is a best one of the other, groups in which some reward tells siblings apart)."""
    groups: defaultdict[tuple[int, int], list[tuple[float, float]]] = defaultdict(list)
    for turn in turns:
        if turn.both is not None:
            groups[turn.group].append(turn.both)
    told_apart = [np.array(pairs) for pairs in groups.values() if np.ptp(np.array(pairs), axis=0).max() > 1e-4]
    best = [values >= values.max(0) - 1e-4 for values in told_apart]
    return sum(not found.all(1).any() for found in best), len(told_apart)


def disagreements(turns: Sequence[ReplayedTurn], at_most: int) -> list[ReplayedTurn]:
    """The turns that the two rewards place furthest apart among the turns of their kind, in standard deviations; equal ones once."""
    apart: list[tuple[float, ReplayedTurn]] = []
    for kind in dict.fromkeys(turn.kind for turn in turns):
        judged = [(turn, turn.both) for turn in turns if turn.kind == kind and turn.both is not None]
        values = np.array([both for _, both in judged]).reshape(-1, 2)
        placed = (values - values.mean(0)) / np.maximum(values.std(0), 1e-9) if len(values) else values
        apart += [(float(abs(a - b)), turn) for (a, b), (turn, _) in zip(placed, judged, strict=True)]
    ranked = sorted(apart, key=lambda entry: -entry[0])
    return list({(turn.question.id, turn.text): turn for distance, turn in reversed(ranked) if distance > 1e-6}.values())[::-1][:at_most]
