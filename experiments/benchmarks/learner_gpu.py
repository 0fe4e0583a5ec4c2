"""GPU utilisation: the scorer over a model of the 3B shape with random weights in bfloat16, forward and backward.

MFU counts 6 FLOP per weight and token (for the output head: per response token; attention scores are not counted), relative to 790 TFLOP/s.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from experiments.benchmarks.bench_results import BenchResult
from learner.objective.batch_plan import cut
from learner.objective.sibling_packing import Response, Row
from learner.objective.token_logprobs import Scorer, inputs_of, packed
from rollout.policies.qwen_vl import QwenVLPolicy

TEXT_3B = {
    **{"hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36, "num_attention_heads": 16, "num_key_value_heads": 2},
    **{"vocab_size": 151936, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}},
}
VISION_3B = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 2048}
PEAK = 790e12
"""FLOP/s."""
PROMPT, RESPONSE, GROUP, TOKENS = 512, 32, 8, 16384
NAME = f"3B shape, bfloat16, {TOKENS} tokens a micro-batch, shared prefix"


def gpu_rows(quick: bool) -> Iterator[BenchResult]:
    if not torch.cuda.is_available():
        yield BenchResult(f"{NAME}: MFU (no GPU)", float("nan"), "", bar=0.4)
        return
    policy = random_policy(TEXT_3B, VISION_3B, torch.bfloat16, "cuda")
    scorer = Scorer(policy)
    seconds, flop, _, samples = measured(scorer, policy, TOKENS, True, 2 if quick else 5)
    alone, _, _, alone_samples = measured(scorer, policy, TOKENS, False, 2 if quick else 5)
    yield BenchResult.of(f"{NAME}: samples, against a row a sample", samples / seconds, "samples/s", alone_samples / alone)
    yield BenchResult.of(f"{NAME}: MFU", flop / seconds / PEAK, "", bar=0.4)


class RandomPolicy(QwenVLPolicy):
    """Without a tokenizer: prompts are token ids."""

    pad_token_id, banned_token_ids = 0, ()


def random_policy(text: dict[str, Any], vision: dict[str, Any], dtype: torch.dtype, device: str) -> RandomPolicy:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True)
    config._attn_implementation = "sdpa"
    torch.manual_seed(0)
    with torch.device(device):
        model = Qwen2_5_VLForConditionalGeneration._from_config(config, dtype=dtype)
    return RandomPolicy(model)


def measured(scorer: Scorer, policy: Any, tokens: int, shared: bool, times: int) -> tuple[float, float, int, int]:
    """(seconds, FLOP, tokens read, samples) of one micro-batch."""
    draw = np.random.default_rng(0)
    length = PROMPT + (GROUP if shared else 1) * (RESPONSE - 1)
    vocabulary = policy.lm_head.weight.shape[0]
    rows = [_row(draw, GROUP if shared else 1, vocabulary) for _ in range(tokens // length)]
    (batch,) = cut(rows, tokens)
    inputs = inputs_of(packed(batch, policy), policy, policy.device)
    inside = sum(p.numel() for p in policy.text_model.layers.parameters())
    read, predicted = len(inputs["input_ids"]), len(inputs["targets"])

    def once() -> None:
        scorer.zero_grad()
        scorer(**inputs)[0].sum().backward()
        if policy.device.type == "cuda":
            torch.cuda.synchronize()

    for _ in range(3):
        once()
    begin = time.perf_counter()
    for _ in range(times):
        once()
    flop = 6.0 * (inside * read + policy.lm_head.weight.numel() * predicted)
    return (time.perf_counter() - begin) / times, flop, read, len(rows) * (GROUP if shared else 1)


def _row(draw: np.random.Generator, siblings: int, vocabulary: int) -> Row:
    def some(n: int) -> np.ndarray:
        return draw.integers(0, vocabulary // 2, n).astype(np.int32)

    return Row(some(PROMPT), None, tuple(Response(some(RESPONSE), np.zeros(RESPONSE, np.float32), 1.0, 1.0) for _ in range(siblings)))
