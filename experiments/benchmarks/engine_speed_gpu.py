"""Decoding on a GPU: random weights of the 3B shape in bfloat16, against batched `generate` and against what the memory can read.

Never run: there was no GPU at hand when this was written.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import torch

from experiments.benchmarks.engine_speed import SIBLINGS, library_tokens
from experiments.benchmarks.row import Row
from experiments.config import TrainConfig, find_policy
from rollout.engines.base import Request, Sampling, generate
from rollout.engines.transformers_engine import TransformersEngine
from rollout.policy import Policy

SLOTS = (64, 256, 512)
BYTES_PER_SECOND = 4.3e12
"""Of an H200's memory, measured by those who set the bar."""


def gpu_rows(quick: bool) -> Iterator[Row]:
    if not torch.cuda.is_available():
        for slots in SLOTS:
            yield Row(f"GPU, {slots} slots, vs batched generate (no GPU here)", float("nan"), "tokens/s", bar=5)
            yield Row(f"GPU, {slots} slots, share of the memory's limit (no GPU here)", float("nan"), "of 1", bar=0.5)
        return
    policy = policy_of_3b_shape()
    for slots in SLOTS[:1] if quick else SLOTS:
        requests = mixed_requests(2 * slots // SIBLINGS)
        engine = TransformersEngine(policy, slots, batch_tokens=1_000_000, compile_decode=True)
        generate(engine, requests[:2])
        before = engine.stats
        generate(engine, requests)
        stats = engine.stats
        rate = (stats.sampled_tokens - before.sampled_tokens) / (stats.decode_s - before.decode_s)
        whole = (stats.sampled_tokens - before.sampled_tokens) / (stats.decode_s + stats.prefill_s - before.decode_s - before.prefill_s)
        repeated = [request for request in requests for _ in range(SIBLINGS)]
        library_tokens(policy, repeated[:4])
        torch.cuda.synchronize()
        began = time.perf_counter()
        tokens = sum(library_tokens(policy, repeated[i : i + slots]) for i in range(0, len(repeated), slots))
        yield Row.of(f"GPU, {slots} slots, vs batched generate", whole, "tokens/s", tokens / (time.perf_counter() - began), bar=5)
        yield Row.of(f"GPU, {slots} slots, share of the memory's limit", rate / limit(policy, requests, slots), "of 1", bar=0.5)


def limit(policy: Policy, requests: list[Request], slots: int) -> float:
    """Tokens/s if a step took only as long as reading the weights, each prompt's keys and values once for its siblings, and half a response."""
    text = policy.model.config.get_text_config()
    per_token = 2 * text.num_hidden_layers * text.num_key_value_heads * (text.hidden_size // text.num_attention_heads) * 2
    prompt = float(np.mean([len(request.prompt_ids) for request in requests])) / SIBLINGS
    response = float(np.mean([request.sampling.max_new_tokens for request in requests])) / 2
    weights = sum(parameter.numel() * 2 for parameter in policy.model.model.language_model.parameters())
    return slots * BYTES_PER_SECOND / (weights + slots * per_token * (prompt + response))


def mixed_requests(prompts: int) -> list[Request]:
    """Prompts of 200 to 1,000 tokens, responses of up to 32 to 256."""
    draw = np.random.default_rng(0)
    lengths, rooms = draw.integers(200, 1000, prompts), draw.integers(32, 256, prompts)
    return [
        Request(draw.integers(300, 800, length).astype(np.int32), None, SIBLINGS, seed, Sampling(max_new_tokens=int(room)))
        for seed, (length, room) in enumerate(zip(lengths, rooms, strict=True))
    ]


def policy_of_3b_shape() -> Policy:
    """The default policy's tokenizer and pictures on a text model of Qwen2.5-VL-3B's shape."""
    from transformers import Qwen2_5_VLForConditionalGeneration

    small = Policy.load(find_policy(TrainConfig().train.policy))
    config = small.model.config
    text = config.get_text_config()
    text.hidden_size, text.intermediate_size, text.num_hidden_layers, text.vocab_size = 2048, 11008, 36, 151936
    text.num_attention_heads, text.num_key_value_heads, text.max_position_embeddings = 16, 2, 32768
    text.layer_types = ["full_attention"] * 36
    text.rope_parameters = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}
    config.vision_config.out_hidden_size = 2048
    with torch.device("cuda"):
        model = Qwen2_5_VLForConditionalGeneration(config).to(torch.bfloat16)
    return Policy(model.eval(), small.tokenizer, small.image_processor)
