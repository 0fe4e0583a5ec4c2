"""Whole episodes: is the engine kept busy while knowledge bases think, what does learning beside rolling out save, what costs the driver?"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from experiments.atlas import KNOWLEDGE_BASES, Atlas
from experiments.benchmarks.row import Row
from experiments.benchmarks.simulated_workers import SimulatedGroup
from experiments.config import TrainConfig, find_policy, load_config
from retrieval_actors.records import Passage, Query
from rollout.config import RolloutConfig
from rollout.episode_pool import roll_out
from rollout.records import Question

ANSWERS_AFTER_S = 0.05
WORKERS = (1, 2, 4, 8, 16, 32, 64)
IN_FLIGHT_PER_WORKER = 64
OVERLAP_ROUNDS, OVERLAP_ITERATIONS = 2, 3


def pipeline_rows(quick: bool) -> Iterator[Row]:
    yield from upstream_rows(quick)
    yield from busy_rows(quick)
    yield from driver_rows(quick)
    if not quick:
        yield from overlap_rows()


@dataclass(frozen=True)
class ShelfCard:
    name: str
    retriever_name: str
    description: str
    modality: str


class SlowShelves:
    """The knowledge bases of an atlas, searched by common words; every search takes 50 ms, however many queries it has."""

    def __init__(self, atlas: Atlas):
        self.catalog = [ShelfCard(kb, *names, kb) for kb, names in KNOWLEDGE_BASES.items()]
        self._shelves = {kb: [(_words(passage.text), passage) for passage in atlas.passages(kb)] for kb in KNOWLEDGE_BASES}

    def search_routed(self, asked: Sequence[tuple[str, Query]], k: int) -> list[list[Passage]]:
        end = time.monotonic() + ANSWERS_AFTER_S
        found = []
        for kb, query in asked:
            words = _words(query.text)
            best = sorted(self._shelves[kb], key=lambda entry: -len(words & entry[0]))[:k]
            found.append([replace(passage, image=None, kb=kb) for _, passage in best])
        time.sleep(max(0.0, end - time.monotonic()))
        return found


def _words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", text.lower()))


def busy_rows(quick: bool) -> Iterator[Row]:
    """An iteration of 64 questions of one worker, in `branch` mode, and what its slots and its clock were used for."""
    import torch

    from rollout.engine_timeline import EngineTimeline
    from rollout.engines.transformers_engine import TransformersEngine
    from rollout.episode_run import EpisodeRun
    from rollout.policy import Policy

    torch.set_num_threads(1)
    policy = Policy.load(find_policy(TrainConfig().train.policy))
    atlas = Atlas("validation", worlds=1)
    shelves, questions = SlowShelves(atlas), atlas.questions(16 if quick else 64)
    config = RolloutConfig(group_size=8, slots=16 if quick else 64)
    engine = TransformersEngine(policy, config.slots, config.batch_tokens)
    timeline = EngineTimeline(engine)
    EpisodeRun(questions[:2], engine, shelves, config, 0, timeline).work()  # warm up
    timeline.report(0, 0, 0.0)
    began = time.perf_counter()
    done = EpisodeRun(questions, engine, shelves, config, 1, timeline).work()
    seconds = time.perf_counter() - began
    report = timeline.report(0, 0, 0.0)
    retrievals = sum(trajectory.retrievals for _, found in done for trajectory in found)
    what = f"{len(questions)} questions x 8 siblings, {config.slots} slots, {retrievals} retrievals that take 50 ms"
    yield Row.of(f"whole episodes, {what}", len(done) / seconds, "trajectories/s")
    used = report.slot_steps_used / report.slot_steps_available
    yield Row.of(f"slots in use, {what}", 100 * used, "%", bar=85)
    yield Row.of(f"waiting for retrieval, {what}", 100 * report.seconds["search"] / seconds, "%", bar=5, at_most=True)
    yield Row.of(f"prompts, parsing and bookkeeping, {what}", 100 * report.seconds["encode"] / seconds, "%")


def upstream_rows(quick: bool) -> Iterator[Row]:
    """Trajectories a second, over the same knowledge bases, against the library's ways to generate. What grows with the number of episodes has
    all of them on both sides; one response at a time does not, and is measured on a few."""
    import torch

    from experiments.benchmarks.library_engine import ContinuousLibraryEngine, LibraryEngine
    from rollout.engines.transformers_engine import TransformersEngine
    from rollout.episode import sampling_of
    from rollout.policy import Policy

    torch.set_num_threads(1)
    path = find_policy(TrainConfig().train.policy)
    policy, library = Policy.load(path), Policy.load(path)  # the library keeps its own attention
    atlas = Atlas("validation", worlds=1)
    shelves, questions = SlowShelves(atlas), atlas.questions(8 if quick else 64)
    config = RolloutConfig(group_size=8)
    engine = TransformersEngine(policy, config.slots, config.batch_tokens)
    _rolled_out(questions[:4], engine, shelves, config)  # warm up
    ours = _rolled_out(questions, engine, shelves, config)
    what = f"whole episodes, {len(questions)} questions x 8 siblings"
    few = questions[: 1 if quick else 8]
    one = _rolled_out(few, LibraryEngine(library, at_once=1), shelves, config)
    yield Row.of(f"{what}, vs model.generate for one prompt at a time (of {len(few)} questions)", ours, "trajectories/s", one, bar=15)
    lockstep = _rolled_out(questions, LibraryEngine(library, at_once=8 * len(questions)), shelves, config)
    yield Row.of(f"{what}, vs model.generate in lockstep, prompts repeated", ours, "trajectories/s", lockstep, bar=3)
    text = [question for question in questions if not question.image]
    theirs = ContinuousLibraryEngine(library, sampling_of(config, "plan"))
    _rolled_out(text[:2], theirs, shelves, config)
    continuous = _rolled_out(text, theirs, shelves, config)
    theirs.close()
    ours = _rolled_out(text, engine, shelves, config)
    name = f"whole episodes, {len(text)} text questions x 8 siblings, vs the library's continuous batching"
    yield Row.of(name, ours, "trajectories/s", continuous, bar=2)


def _rolled_out(questions: Sequence[Question], engine: Any, shelves: SlowShelves, config: RolloutConfig) -> float:
    """Trajectories a second."""
    began = time.perf_counter()
    found = roll_out(questions, engine, shelves, config, seed=1)
    seconds = time.perf_counter() - began
    assert not any(trajectory.error for trajectory in found)
    return len(found) / seconds


def driver_rows(quick: bool) -> Iterator[Row]:
    """CPU seconds of the driver for one trajectory, with workers that sleep instead of sampling; the plot goes to docs/images."""
    from experiments.benchmarks.driver_plot import plot_driver
    from experiments.cluster import start_ray
    from learner.rollout_batch import Batch
    from learner.rollout_workers import RolloutWorkers

    found: list[tuple[int, float]] = []
    with start_ray(TrainConfig()):
        for workers in (1, 8) if quick else WORKERS:
            group = SimulatedGroup(workers)
            rollout = RolloutWorkers(group, chunk=IN_FLIGHT_PER_WORKER, deadline_s=120)
            rollout.push(1, [])  # no buckets: they hold no weights
            sleeps = np.random.default_rng(0).uniform(0.2, 1.0, 2 * workers * IN_FLIGHT_PER_WORKER)
            questions = [Question(f"q{i}", str(seconds), ()) for i, seconds in enumerate(sleeps)]
            rollout.roll_out(questions[:workers], seed=0)  # warm up
            before = time.process_time()
            for _ in rollout.work(Batch.of(questions, IN_FLIGHT_PER_WORKER, seed=0)):
                pass
            found.append((workers, 1e6 * (time.process_time() - before) / len(questions)))
            group.close()
            first = found[0][1] if len(found) > 1 else None
            at_once = workers * IN_FLIGHT_PER_WORKER
            name = f"driver, {workers} workers, {at_once:,} episodes in flight: CPU a trajectory, to that with 1 worker"
            yield Row.of(name, found[-1][1], "us", first, bar=None if first is None else 1.5, at_most=first is not None)
    if not quick:
        plot_driver(found, Path("docs/images/driver_overhead.png"))


def overlap_rows() -> Iterator[Row]:
    """Iterations of the default run on a small atlas, with and without overlap, in turns: same processes, questions, settings."""
    from rich.console import Console

    from experiments.cluster import start_ray
    from experiments.datasets import load_dataset
    from experiments.parts import build_parts
    from experiments.progress import Progress

    settings = ["data.worlds=1", "data.countries=12", "data.train_questions=256", "learner.sampler_cap=2", "tracking.mlflow=false"]
    config = load_config(["laptop.yaml", *settings])
    dataset = load_dataset(config.data, config.evaluation, config.retrieval.folders)
    with start_ray(config), Progress(Console(quiet=True), "bench", 1, 0) as progress:
        parts = build_parts(config, dataset, find_policy(config.train.policy), progress)
        try:
            algorithm = parts.algorithm
            seconds: dict[int, list[float]] = {0: [], 1: []}
            for overlap in (0, 1) * OVERLAP_ROUNDS:
                algorithm.config = algorithm.config.copy(copy_frozen=False).training(overlap=overlap)
                if overlap:
                    algorithm.train()  # the first one has to fill the pipeline
                for _ in range(OVERLAP_ITERATIONS):
                    began = time.perf_counter()
                    algorithm.train()
                    seconds[overlap].append(time.perf_counter() - began)
                if algorithm.ahead is not None:
                    algorithm.questions.settle(algorithm.ahead.asked)
                    algorithm.ahead = None
        finally:
            parts.close()
    off, on = (float(np.median(seconds[overlap])) for overlap in (0, 1))
    yield Row.of("iteration with train.overlap=1, to that with overlap=0 (at most 1 is a gain)", on, "s", off)
