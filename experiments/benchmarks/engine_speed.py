"""The generation engine against three ways the library offers: same policy, prompts, sampling and thread, ratios within one run."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from experiments.benchmarks.library_engine import library_sampling, sample_with_library
from experiments.benchmarks.row import Row
from experiments.config import TrainConfig, find_policy
from experiments.teacher import demonstrations
from rollout.engines.base import Request, Sampling, generate
from rollout.engines.transformers_engine import TransformersEngine
from rollout.policy import Policy

SIBLINGS = 8
SAMPLING = Sampling(max_new_tokens=64)
TURNS = 5
"""Of an episode with two steps: plan, answer, plan, answer, final."""


def engine_rows(quick: bool) -> Iterator[Row]:
    torch.set_num_threads(1)
    path = find_policy(TrainConfig().train.policy)
    policy, library = Policy.load(path), Policy.load(path)  # the library keeps its own attention
    shown = list(itertools.islice(demonstrations(11), 64 * TURNS))
    every = [Request(policy.encode(turn.message, turn.image), turn.image, SIBLINGS, seed, SAMPLING) for seed, turn in enumerate(shown)]
    requests = every[:: TURNS * (4 if quick else 1)]
    one_by_one, what = requests[: 4 if quick else 16], f"{len(requests)} prompts x {SIBLINGS} siblings"
    engine = TransformersEngine(policy)
    generate(engine, requests[:2])
    ours = _rate(lambda: _sampled(generate(engine, requests)))
    apart = [replace(request, siblings=1, seed=request.seed * SIBLINGS + j) for request in requests for j in range(SIBLINGS)]
    own = _rate(lambda: _sampled(generate(engine, apart)))
    yield Row.of(f"{what}, siblings that share keys and values, vs requests of their own", ours, "tokens/s", own)
    alone = _rate(lambda: sum(library_tokens(library, [request]) for request in one_by_one), best_of=1)
    name = f"{what}, vs model.generate for one sample at a time (of {len(one_by_one)} samples, per token)"
    yield Row.of(name, ours, "tokens/s", alone, bar=15)
    repeated = [request for request in requests for _ in range(SIBLINGS)]
    yield Row.of(
        f"{what}, vs model.generate in one batch, prompts repeated", ours, "tokens/s", _rate(lambda: library_tokens(library, repeated)), 3
    )
    yield continuous_row(library, engine, [request for request in requests if not request.image])
    yield from logprob_rows(policy, engine, requests[: 8 if quick else 32])
    yield slots_row(policy, every[: 16 * TURNS] if quick else every)


def _rate(work: Callable[[], int], best_of: int = 3) -> float:
    """Tokens per second; `work` returns its tokens."""
    rates = []
    for _ in range(best_of):
        began = time.perf_counter()
        tokens = work()
        rates.append(tokens / (time.perf_counter() - began))
    return max(rates)


def _sampled(found: Sequence[Sequence[Any]]) -> int:
    return sum(len(response.ids) for group in found for response in group)


def library_tokens(policy: Policy, requests: Sequence[Request]) -> int:
    return sum(len(ids) for ids in sample_with_library(policy, requests))


def continuous_row(policy: Policy, engine: TransformersEngine, requests: Sequence[Request]) -> Row:
    """The library's own continuous batching takes no pictures. Its manager is kept between the calls, and only the later ones count."""
    from transformers import ContinuousBatchingConfig, GenerationConfig

    logging.getLogger("ContinuousBatchingLogger").setLevel(logging.ERROR)
    prompts = [request.prompt_ids.tolist() for request in requests for _ in range(SIBLINGS)]
    how = GenerationConfig(**library_sampling(policy, SAMPLING))
    cache = ContinuousBatchingConfig(num_blocks=2048, page_size=32, max_batch_tokens=2048, use_async_batching=False)

    def theirs() -> int:
        found = policy.model.generate_batch(prompts, generation_config=how, continuous_batching_config=cache, persistent_manager=True)
        return sum(len(output.generated_tokens) for output in found.values())

    theirs()
    rate = _rate(theirs)
    policy.model.destroy_cached_continuous_batching_manager()
    name = f"{len(requests)} text prompts x {SIBLINGS} siblings, vs the library's continuous batching"
    return Row.of(name, _rate(lambda: _sampled(generate(engine, requests))), "tokens/s", rate, bar=2)


def logprob_rows(policy: Policy, engine: TransformersEngine, requests: Sequence[Request]) -> Iterator[Row]:
    text, pictured = ([request for request in requests if bool(request.image) == shown] for shown in (False, True))
    yield Row.of("log-probs vs a plain forward, text", _difference(policy, engine, text), "nats", bar=1e-4, at_most=True)
    yield Row.of("log-probs vs a plain forward, pictures", _difference(policy, engine, pictured), "nats", bar=1e-4, at_most=True)
    changed = torch.Generator().manual_seed(0)
    weights = {
        name: tensor + 0.02 * tensor.std() * torch.randn(tensor.shape, generator=changed)
        for name, tensor in policy.model.named_parameters()
    }
    engine.update_weights(1, weights)
    yield Row.of("log-probs vs a plain forward, after an update", _difference(policy, engine, requests), "nats", bar=1e-4, at_most=True)


def _difference(policy: Policy, engine: TransformersEngine, requests: Sequence[Request]) -> float:
    """Largest, over all tokens of the first two siblings."""
    worst = 0.0
    for request, (first, second, *_) in zip(requests, generate(engine, requests), strict=True):
        for response in (first, second):
            ids = torch.from_numpy(np.concatenate([request.prompt_ids, response.ids]).astype(np.int64))[None]
            inputs: dict[str, Any] = {"input_ids": ids}
            if request.image:
                pixels, grids = policy.pixels([request.image])
                inputs |= {"pixel_values": pixels, "image_grid_thw": grids, "mm_token_type_ids": (ids == policy.image_token_id).int()}
            with torch.inference_mode():
                logits = policy.model(**inputs).logits[0, len(request.prompt_ids) - 1 : -1]
            plain = logits.log_softmax(-1).gather(1, ids[0, len(request.prompt_ids) :, None])[:, 0].numpy()
            worst = max(worst, float(np.abs(plain - response.logprobs).max()))
    return worst


def slots_row(policy: Policy, requests: Sequence[Request]) -> Row:
    """An iteration as the engine sees it: every question asks for its next turn when all siblings of the last one have ended."""
    questions = len(requests) // TURNS
    engine = TransformersEngine(policy, slots=SIBLINGS * questions // 4)
    turns = {engine.submit(requests[i]): (i, SIBLINGS) for i in range(questions)}
    while turns:
        for ticket in [finished.ticket for finished in engine.collect()]:
            i, left = turns.pop(ticket)
            if left > 1:
                turns[ticket] = i, left - 1
            elif i + questions < len(requests):
                turns[engine.submit(requests[i + questions])] = i + questions, SIBLINGS
    stats = engine.stats
    name = f"slots in use over {questions} questions of {TURNS} turns x {SIBLINGS} siblings, {SIBLINGS * questions // 4} slots"
    return Row.of(name, stats.slot_steps_used / stats.slot_steps_available, "of 1", bar=0.85)
