"""Rollouts of `bench peers`: no token ends a response, so that all contenders sample as many. And the limits of the CPU."""

from __future__ import annotations

import os
import timeit
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from transformers import ContinuousBatchingConfig, GenerationConfig

from experiments.benchmarks.peer_process import Once, Result, Work
from experiments.benchmarks.transformers_generate import GenerateEngine
from rollout.engines.base import Request, Sampling, generate
from rollout.engines.transformers_engine import TransformersEngine
from rollout.engines.vllm_engine import ON_CPUS, QUIET
from rollout.policies import Policy, load_policy

PAGE = 32  # tokens of a block of keys and values
GEMM, FAR_BYTES = 2048, 2**30  # side of the product; memory that is read, far more than caches hold


def endless(work: Work) -> Policy:
    policy = load_policy(work.policy)
    policy.tokenizer.pad_token = policy.tokenizer.pad_token or policy.tokenizer.eos_token
    policy.end_token_id = -1
    return policy


def requests_of(work: Work, version: int = 0) -> list[Request]:
    sampling, first = Sampling(max_new_tokens=work.new_tokens), version * len(work.ids)
    return [Request(np.array(ids, np.int32), None, work.siblings, first + i, sampling) for i, ids in enumerate(work.ids)]


def ours(work: Work, shared: bool) -> Once:
    policy, requests = endless(work), requests_of(work)
    if not shared:
        requests = [replace(r, siblings=1, seed=r.seed * work.siblings + j) for r in requests for j in range(work.siblings)]
    engine = TransformersEngine(policy)
    generate(engine, requests[:1])  # warm up

    def once() -> Result:
        groups = generate(engine, requests)
        columns = {name: [[getattr(r, name).tolist() for r in group] for group in groups] for name in ("ids", "logprobs")}
        return columns | {"tokens": sum(len(r.ids) for group in groups for r in group)} | least_work(work, policy)

    return once


def least_work(work: Work, policy: Policy) -> Result:
    """FLOP of the prompts, once each; FLOP and bytes of a decode step of all responses, on average: weights, attention, keys and values."""
    text, lengths = policy.model.config.get_text_config(), np.array([len(ids) for ids in work.ids])
    inside = sum(parameter.numel() for parameter in policy.text_model.layers.parameters())
    head, rows = policy.lm_head.weight.numel(), work.siblings * len(lengths)
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    seen, kept = 4 * text.num_attention_heads * text.num_hidden_layers * size, 2 * text.num_key_value_heads * text.num_hidden_layers * size
    response = work.new_tokens / 2
    return {
        "prefill_flop": float(2 * inside * lengths.sum() + 2 * head * len(lengths) + seen * (lengths**2).sum() / 2),
        "step_flop": float(rows * (2 * (inside + head) + seen * (lengths.mean() + response))),
        "step_bytes": float(policy.model.dtype.itemsize * (inside + head + kept * (lengths.sum() + rows * response))),
    }


def library_generate(work: Work) -> Once:
    """All responses in one batch."""
    policy, requests = endless(work), requests_of(work)
    policy.banned_token_ids = ()
    engine: Any = GenerateEngine(policy, work.siblings * len(requests))
    return lambda: {"tokens": sum(len(response.ids) for group in generate(engine, requests) for response in group)}


def library_batching(work: Work, shared: bool) -> Once:
    policy, rows = endless(work), work.siblings * len(work.ids)
    settings = GenerationConfig(
        do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=work.new_tokens, eos_token_id=-1,
        pad_token_id=policy.pad_token_id, num_return_sequences=work.siblings if shared else 1,
    )  # fmt: skip
    blocks = rows * (2 + (max(map(len, work.ids)) + work.new_tokens) // PAGE)
    cache = ContinuousBatchingConfig(
        num_blocks=blocks, page_size=PAGE, max_batch_tokens=2048, allow_block_sharing=shared, use_async_batching=False
    )
    inputs = [ids for ids in work.ids for _ in range(1 if shared else work.siblings)]
    ask: Any = policy.model.generate_batch
    return lambda: {"tokens": sum(len(found.generated_tokens) for found in ask(inputs, settings, cache).values())}


def vllm_rollout(work: Work, shared: bool) -> Once:
    os.environ |= QUIET | ON_CPUS | {"VLLM_CPU_KVCACHE_SPACE": "1"}
    import vllm

    engine = vllm.LLM(
        model=work.policy, dtype="float32", max_model_len=max(map(len, work.ids)) + work.new_tokens, enforce_eager=True, block_size=PAGE,
        max_num_seqs=work.siblings * len(work.ids), enable_prefix_caching=shared, use_tqdm_on_load=False,
    )  # fmt: skip
    sampling = vllm.SamplingParams(n=work.siblings if shared else 1, max_tokens=work.new_tokens, ignore_eos=True, detokenize=False)
    inputs = [{"prompt_token_ids": ids} for ids in work.ids for _ in range(1 if shared else work.siblings)]
    engine.generate(inputs[:1], vllm.SamplingParams(max_tokens=2), use_tqdm=False)  # warm up

    def once() -> Result:
        engine.reset_prefix_cache()  # of the round before
        return {
            "tokens": sum(len(found.token_ids) for of_one in engine.generate(inputs, sampling, use_tqdm=False) for found in of_one.outputs)
        }

    return once


def limits(work: Work) -> Once:
    """FLOP/s of a large product of matrices, and bytes/s read from memory."""
    a, b, c = torch.randn(3, GEMM, GEMM)
    far = torch.ones(FAR_BYTES // 4)

    def once() -> Result:
        product, read = (min(timeit.repeat(call, number=1, repeat=5)) for call in (lambda: torch.mm(a, b, out=c), far.sum))
        return {"flops": 2 * GEMM**3 / product, "bandwidth": far.nbytes / read}

    return once
