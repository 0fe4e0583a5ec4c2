"""How well a GPU is used: the scorer over a model of the 3B shape with random weights in bfloat16, forward and backward.

MFU counts 6 FLOP for each weight and token that passes it (the vocabulary's matrix: the response tokens; attention itself: nothing), over
790 TFLOP/s.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from experiments.benchmarks.row import Row
from learner.micro_batches import Response, cut
from learner.micro_batches import Row as PackedRow
from learner.scorer import Scorer, inputs_of, packed

TEXT_3B = {
    "hidden_size": 2048,
    "intermediate_size": 11008,
    "num_hidden_layers": 36,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
}
VISION_3B = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 2048}
PEAK = 790e12
"""FLOP/s."""
PROMPT, RESPONSE, GROUP = 512, 32, 8


def gpu_rows(quick: bool) -> Iterator[Row]:
    names = [(tokens, shared) for tokens in (4096, 16384) for shared in (True, False)]
    if not torch.cuda.is_available():
        for tokens, shared in names:
            yield Row(f"{_name(tokens, shared)}: MFU (no GPU)", float("nan"), "", bar=0.4)
        return
    policy = random_policy(TEXT_3B, VISION_3B, torch.bfloat16, "cuda")
    scorer = Scorer(policy)
    for tokens, shared in names:
        seconds, flop, read, samples = measured(scorer, policy, tokens, shared, 2 if quick else 5)
        yield Row.of(f"{_name(tokens, shared)}: tokens", read / seconds, "tokens/s")
        yield Row.of(f"{_name(tokens, shared)}: samples", samples / seconds, "samples/s")
        yield Row.of(f"{_name(tokens, shared)}: MFU", flop / seconds / PEAK, "", bar=0.4)


def random_policy(text: dict[str, Any], vision: dict[str, Any], dtype: torch.dtype, device: str) -> Any:
    """What the scorer needs of a policy, for prompts without pictures."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True)
    config._attn_implementation = "sdpa"
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = Qwen2_5_VLForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(before)
    return SimpleNamespace(
        model=model,
        image_token_id=config.image_token_id,
        merge=config.vision_config.spatial_merge_size,
        pad_token_id=0,
        device=torch.device(device),
        positions=lambda ids, grid: np.tile(np.arange(len(ids)), (3, 1)),
    )


def measured(scorer: Scorer, policy: Any, tokens: int, shared: bool, times: int) -> tuple[float, float, int, int]:
    """Seconds of a micro-batch, FLOP as counted, tokens read, samples."""
    draw = np.random.default_rng(0)
    length = PROMPT + (GROUP if shared else 1) * (RESPONSE - 1)
    words = scorer.model.lm_head.weight.shape[0]
    rows = [_row(draw, GROUP if shared else 1, words) for _ in range(tokens // length)]
    (batch,) = cut(rows, tokens)
    inputs = inputs_of(packed(batch, policy), policy, policy.device)
    text = scorer.model.model.language_model
    inside = sum(p.numel() for p in text.layers.parameters())
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
    flop = 6.0 * (inside * read + scorer.model.lm_head.weight.numel() * predicted)
    return (time.perf_counter() - begin) / times, flop, read, len(rows) * (GROUP if shared else 1)


def _row(draw: np.random.Generator, siblings: int, words: int) -> PackedRow:
    def some(n: int) -> np.ndarray:
        return draw.integers(0, words // 2, n).astype(np.int32)

    return PackedRow(some(PROMPT), None, tuple(Response(some(RESPONSE), np.zeros(RESPONSE, np.float32), 1.0, 1.0) for _ in range(siblings)))


def _name(tokens: int, shared: bool) -> str:
    return f"3B shape, bfloat16, {tokens} tokens a micro-batch, {'shared prefix' if shared else 'a row a sample'}"
