"""Whole episodes: is the engine busy while knowledge bases search, and how much faster is it than the library's generate?"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch

from experiments.benchmarks.bench_results import BenchResult
from experiments.benchmarks.transformers_generate import ContinuousBatchingEngine, GenerateEngine
from experiments.config import TrainConfig, find_policy
from experiments.worlds.atlas import KNOWLEDGE_BASES, Atlas
from retrieval_actors.records import Passage, Query
from rollout.config import RolloutConfig
from rollout.engines.base import Sampling
from rollout.engines.transformers_engine import TransformersEngine
from rollout.policies import load_policy
from rollout.records import Question
from rollout.roll_out import EngineTimeline, EpisodeRun, roll_out

SEARCH_S = 0.05


class SlowKnowledgeBases:
    """The knowledge bases of an atlas, searched by word overlap; a search takes `seconds`, however many queries it has."""

    def __init__(self, atlas: Atlas, seconds: float = SEARCH_S):
        self._seconds = seconds
        self.catalog = [
            SimpleNamespace(name=kb, retriever_name=name, description=about, modality=kb) for kb, (name, about) in KNOWLEDGE_BASES.items()
        ]
        self._knowledge_bases = {kb: [(_words(passage.text), passage) for passage in atlas.passages(kb)] for kb in KNOWLEDGE_BASES}

    def search_routed(self, asked: Sequence[tuple[str, Query]], k: int) -> list[list[Passage]]:
        end = time.monotonic() + self._seconds
        found = []
        for kb, query in asked:
            words = _words(query.text)
            best = sorted(self._knowledge_bases[kb], key=lambda entry: -len(words & entry[0]))[:k]
            found.append([replace(passage, image=None, kb=kb) for _, passage in best])
        time.sleep(max(0.0, end - time.monotonic()))
        return found


def _words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", text.lower()))


def busy_rows(quick: bool) -> Iterator[BenchResult]:
    """One worker rolls out 64 questions (`quick`: 16) in `branch` mode: slots in use, and the share of time by phase."""
    torch.set_num_threads(1)
    policy = load_policy(find_policy(TrainConfig().train.policy))
    atlas = Atlas("validation", worlds=1)
    knowledge_bases, questions = SlowKnowledgeBases(atlas), atlas.questions(16 if quick else 64)
    config = RolloutConfig(group_size=8, slots=16 if quick else 64)
    engine = TransformersEngine(policy, config.slots, config.batch_tokens)
    timeline = EngineTimeline(engine)
    EpisodeRun(questions[:2], engine, knowledge_bases, config, 0, timeline).work()  # warm up
    timeline.report(0, 0, [], 0)
    began = time.perf_counter()
    done = EpisodeRun(questions, engine, knowledge_bases, config, 1, timeline).work()
    seconds = time.perf_counter() - began
    report = timeline.report(0, 0, [], 0)
    retrievals = sum(trajectory.retrievals for _, found in done for trajectory in found)
    what = f"{len(questions)} questions x 8 siblings, {config.slots} slots, {retrievals} retrievals that take 50 ms"
    yield BenchResult.of(f"whole episodes, {what}", len(done) / seconds, "trajectories/s")
    used = report.slot_steps_used / report.slot_steps_available
    yield BenchResult.of(f"slots in use, {what}", 100 * used, "%", bar=85)
    yield BenchResult.of(f"waiting for retrieval, {what}", 100 * report.seconds["search"] / seconds, "%", bar=5, at_most=True)
    yield BenchResult.of(f"prompts, parsing and bookkeeping, {what}", 100 * report.seconds["encode"] / seconds, "%")


def upstream_rows(quick: bool) -> Iterator[BenchResult]:
    """Trajectories a second, over the same knowledge bases, against the library's ways to generate. One response at a time is
    measured on a few questions, as its rate does not depend on their number; both other ways get all of them."""
    torch.set_num_threads(1)
    path = find_policy(TrainConfig().train.policy)
    policy, library = load_policy(path), load_policy(path)  # the library keeps its own attention
    atlas = Atlas("validation", worlds=1)
    knowledge_bases, questions = SlowKnowledgeBases(atlas), atlas.questions(8 if quick else 64)
    config = RolloutConfig(group_size=8)
    engine = TransformersEngine(policy, config.slots, config.batch_tokens)
    _rolled_out(questions[:4], engine, knowledge_bases, config)  # warm up
    ours = _rolled_out(questions, engine, knowledge_bases, config)
    what = f"whole episodes, {len(questions)} questions x 8 siblings"
    few = questions[: 1 if quick else 8]
    one = _rolled_out(few, GenerateEngine(library, at_once=1), knowledge_bases, config)
    name = f"{what}, vs model.generate for one prompt at a time (of {len(few)} questions)"
    yield BenchResult.of(name, ours, "trajectories/s", one, bar=15)
    lockstep = _rolled_out(questions, GenerateEngine(library, at_once=8 * len(questions)), knowledge_bases, config)
    yield BenchResult.of(f"{what}, vs model.generate in lockstep, prompts repeated", ours, "trajectories/s", lockstep, bar=3)
    text = [question for question in questions if not question.image]
    theirs = ContinuousBatchingEngine(library, Sampling.of(config))
    _rolled_out(text[:2], theirs, knowledge_bases, config)
    continuous = _rolled_out(text, theirs, knowledge_bases, config)
    theirs.close()
    ours = _rolled_out(text, engine, knowledge_bases, config)
    name = f"whole episodes, {len(text)} text questions x 8 siblings, vs the library's continuous batching"
    yield BenchResult.of(name, ours, "trajectories/s", continuous, bar=2)


def _rolled_out(questions: Sequence[Question], engine: Any, knowledge_bases: SlowKnowledgeBases, config: RolloutConfig) -> float:
    """Trajectories a second."""
    began = time.perf_counter()
    found = roll_out(questions, engine, knowledge_bases, config, seed=1)
    seconds = time.perf_counter() - began
    assert not any(trajectory.error for trajectory in found)
    return len(found) / seconds
