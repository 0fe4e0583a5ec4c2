"""Sampling siblings of a prompt together, against sampling them as separate prompts."""

from __future__ import annotations

import time
from collections.abc import Iterator

from experiments.benchmarks.row import Row
from experiments.config import TrainConfig, find_policy


def rollout_rows(quick: bool) -> Iterator[Row]:
    import torch

    from experiments.atlas import Atlas
    from rollout.engines.base import Request, Sampling, generate
    from rollout.engines.transformers_engine import TransformersEngine
    from rollout.policy import Policy
    from rollout.prompts import SHORT

    torch.set_num_threads(1)
    policy = Policy.load(find_policy(TrainConfig().train.policy))
    questions = Atlas("validation", worlds=1).questions(8 if quick else 32)
    prompts = [(policy.encode(SHORT.plan(q.text, q.image is not None, (), ""), q.image), q.image) for q in questions]
    siblings, sampling = 8, Sampling(max_new_tokens=32)

    def tokens_per_second(requests: list[Request]) -> float:
        engine = TransformersEngine(policy)
        generate(engine, requests[:1])
        before, began = engine.stats.sampled_tokens, time.perf_counter()
        generate(engine, requests)
        return (engine.stats.sampled_tokens - before) / (time.perf_counter() - began)

    together = [Request(ids, image, siblings, seed, sampling) for seed, (ids, image) in enumerate(prompts)]
    apart = [Request(ids, image, 1, seed, sampling) for seed, (ids, image) in enumerate(prompts * siblings)]
    separate = tokens_per_second(apart)
    yield Row.of(f"{len(prompts)} prompts x {siblings} siblings, one thread", tokens_per_second(together), "tokens/s", separate)
