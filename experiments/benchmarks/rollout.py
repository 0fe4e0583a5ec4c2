"""`bench rollout`: the engine against three ways to generate with transformers, its log-probs, its slots; then whole episodes.

Both sides have the same policy, prompts, sampling and thread, in one run.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from experiments.benchmarks.bench_results import BenchResult
from experiments.benchmarks.gpu_parity import plain_logprobs
from experiments.benchmarks.pipeline import busy_rows, upstream_rows
from experiments.benchmarks.transformers_generate import ContinuousBatchingEngine, GenerateEngine, tokens_per_second
from experiments.config import TrainConfig, find_policy
from experiments.worlds.teacher import demonstrations
from rollout.engines.base import Request, Sampling, generate
from rollout.engines.transformers_engine import TransformersEngine
from rollout.policies import Policy, load_policy

SIBLINGS = 8
SAMPLING = Sampling(max_new_tokens=64)
TURNS = 5
"""Turns of an episode with two steps: plan, answer, plan, answer, final."""


def rollout_rows(quick: bool) -> Iterator[BenchResult]:
    yield from engine_rows(quick)
    yield from upstream_rows(quick)
    yield from busy_rows(quick)


def engine_rows(quick: bool) -> Iterator[BenchResult]:
    torch.set_num_threads(1)
    path = find_policy(TrainConfig().train.policy)
    policy, library = load_policy(path), load_policy(path)  # the library keeps its own attention
    shown = list(itertools.islice(demonstrations(11), 64 * TURNS))
    every = [Request(policy.encode(turn.message, turn.image), turn.image, SIBLINGS, seed, SAMPLING) for seed, turn in enumerate(shown)]
    requests = every[:: TURNS * (4 if quick else 1)]
    what, few = f"{len(requests)} prompts x {SIBLINGS} siblings", requests[: 4 if quick else 16]
    engine = TransformersEngine(policy)
    generate(engine, requests[:2])  # warm up
    ours = tokens_per_second(engine, requests)
    alone = [replace(request, siblings=1, seed=request.seed * SIBLINGS + j) for request in requests for j in range(SIBLINGS)]
    own = tokens_per_second(engine, alone)
    yield BenchResult.of(f"{what}, siblings that share keys and values, vs requests of their own", ours, "tokens/s", own)
    one = tokens_per_second(GenerateEngine(library, at_once=1), [replace(request, siblings=1) for request in few], best_of=1)
    name = f"{what}, vs model.generate for one sample at a time (of {len(few)} samples, per token)"
    yield BenchResult.of(name, ours, "tokens/s", one, bar=15)
    batch = tokens_per_second(GenerateEngine(library, at_once=len(alone)), requests)
    yield BenchResult.of(f"{what}, vs model.generate in one batch, prompts repeated", ours, "tokens/s", batch, bar=3)
    text = [request for request in requests if not request.image]
    theirs: Any = ContinuousBatchingEngine(library, SAMPLING)
    generate(theirs, text)  # warm up
    continuous = tokens_per_second(theirs, text)
    theirs.close()
    name = f"{len(text)} text prompts x {SIBLINGS} siblings, vs the library's continuous batching"
    yield BenchResult.of(name, tokens_per_second(engine, text), "tokens/s", continuous, bar=2)
    yield from logprob_rows(policy, engine, requests[: 8 if quick else 32])
    yield slots_row(policy, every[: 16 * TURNS] if quick else every)


def logprob_rows(policy: Policy, engine: TransformersEngine, requests: Sequence[Request]) -> Iterator[BenchResult]:
    def row(name: str, some: Sequence[Request]) -> BenchResult:
        return BenchResult.of(f"log-probs vs a plain forward, {name}", _difference(policy, engine, some), "nats", bar=1e-4, at_most=True)

    yield row("text", [request for request in requests if not request.image])
    yield row("pictures", [request for request in requests if request.image])
    noise = torch.Generator().manual_seed(0)
    parameters = policy.model.named_parameters()
    engine.update_weights(1, {n: w + 0.02 * w.std() * torch.randn(w.shape, generator=noise) for n, w in parameters})
    yield row("after an update", requests)


def _difference(policy: Policy, engine: TransformersEngine, requests: Sequence[Request]) -> float:
    """The largest absolute difference, over all tokens of the first two siblings, in nats."""
    worst = 0.0
    for request, siblings in zip(requests, generate(engine, requests), strict=True):
        for response in siblings[:2]:
            plain = plain_logprobs(policy, request.prompt_ids, request.image, response.ids)
            worst = max(worst, float(np.abs(plain - response.logprobs).max()))
    return worst


def slots_row(policy: Policy, requests: Sequence[Request]) -> BenchResult:
    """An iteration as the engine sees it: every question submits its next turn when all siblings of the last one have ended."""
    questions = len(requests) // TURNS
    engine = TransformersEngine(policy, slots=SIBLINGS * questions // 4)
    turns = {engine.submit(requests[i]): (i, SIBLINGS) for i in range(questions)}
    while turns:
        for finished in engine.collect():
            i, left = turns.pop(finished.ticket)
            if left > 1:
                turns[finished.ticket] = i, left - 1
            elif i + questions < len(requests):
                turns[engine.submit(requests[i + questions])] = i + questions, SIBLINGS
    stats = engine.stats
    name = f"slots in use over {questions} questions of {TURNS} turns x {SIBLINGS} siblings, {SIBLINGS * questions // 4} slots"
    return BenchResult.of(name, stats.slot_steps_used / stats.slot_steps_available, "of 1", bar=0.85)
