"""Attention within packed rows: a token sees its prompt and its own response, never a sibling, another route or another row."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from learner.objective.sibling_packing import PROMPT, MicroBatch
from rollout.policies import Policy

NAME = "packed_rows"
PackedAttention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, float | None], torch.Tensor]
"""Attention of one micro-batch from query, key, value, all (1, heads, tokens, size), and scale; keys and values may have fewer heads (GQA)."""


class RowByRow:
    """PyTorch's fused kernel, twice a row: the prompt sees itself, causally; the responses see the row through a mask."""

    def __init__(self, batch: MicroBatch, device: torch.device, dtype: torch.dtype):
        self.rows = np.bincount(batch.rows).tolist()
        self.parts: list[int] = []
        self.masks: list[torch.Tensor] = []
        begin = 0
        for length in self.rows:
            segments, parents = (torch.from_numpy(column[begin : begin + length]) for column in (batch.segments, batch.parents))
            prompt = int((segments == PROMPT).sum())
            self.parts += [prompt, length - prompt]
            hidden = ~sees(segments[prompt:], parents[prompt:], segments)
            self.masks.append(torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, -torch.inf).to(device)[None, None])
            begin += length

    def __call__(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float | None) -> torch.Tensor:
        served = query.shape[1] // key.shape[1]
        if served > 1:
            key, value = key.repeat_interleave(served, 1), value.repeat_interleave(served, 1)
        queries = iter(query.split(self.parts, 2))
        found = []
        for keys, values, mask in zip(key.split(self.rows, 2), value.split(self.rows, 2), self.masks, strict=True):
            prompt, responses = next(queries), next(queries)
            end = prompt.shape[2]
            found.append(F.scaled_dot_product_attention(prompt, keys[:, :, :end], values[:, :, :end], is_causal=True, scale=scale))
            if responses.shape[2]:
                found.append(F.scaled_dot_product_attention(responses, keys, values, mask, scale=scale))
        return torch.cat(found, 2)


class Flex:
    """PyTorch's `flex_attention`: one kernel that skips hidden blocks. Compiled on a GPU; elsewhere only for tests, without gradients."""

    def __init__(self, batch: MicroBatch, device: torch.device, dtype: torch.dtype):
        from torch.nn.attention.flex_attention import create_block_mask

        rows, segments, parents = (torch.from_numpy(column).to(device) for column in (batch.rows, batch.segments, batch.parents))

        def seen(_batch: Any, _head: Any, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
            own = (segments[k] == PROMPT) | (segments[k] == segments[q]) | (segments[k] == parents[q])
            return (rows[q] == rows[k]) & own & (q >= k)

        self.mask = create_block_mask(seen, None, None, len(rows), len(rows), device=str(device), _compile=device.type == "cuda")

    def __call__(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float | None) -> torch.Tensor:
        return _flex_attention(query.device.type)(query, key, value, block_mask=self.mask, scale=scale, enable_gqa=True)


@functools.cache
def _flex_attention(device_type: str) -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention) if device_type == "cuda" else flex_attention


ATTENTIONS: dict[str, type[RowByRow] | type[Flex]] = {"sdpa": RowByRow, "flex": Flex}


def attention_of(name: str, batch: MicroBatch, device: torch.device, dtype: torch.dtype) -> PackedAttention:
    if name == "auto":
        name = "flex" if device.type == "cuda" else "sdpa"
    return ATTENTIONS[name](batch, device, dtype)


def sees(queries: torch.Tensor, parents: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """(queries, keys) bool: what the last tokens of a row attend to. `keys`: segments of the row; `queries`, `parents`: of its last tokens."""
    causal = torch.ones(len(queries), len(keys), dtype=torch.bool).tril(len(keys) - len(queries))
    return ((keys[None] == PROMPT) | (keys[None] == queries[:, None]) | (keys[None] == parents[:, None])) & causal


def install(policy: Policy) -> None:
    """Let the policy's decoder accept `packed=PackedAttention`; calls without it are unchanged."""
    ALL_ATTENTION_FUNCTIONS.register(NAME, _forward)
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    policy.use_attention(NAME)


def _forward(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *mask: Any, packed: PackedAttention | None = None, **rest: Any
) -> tuple[torch.Tensor, None]:
    if packed is None:
        return sdpa_attention_forward(module, query, key, value, *mask, **rest)
    return packed(query, key, value, rest.get("scaling")).transpose(1, 2).contiguous(), None
