"""Attention of responses to a prompt that they share, plugged into transformers' models as the implementation `shared_prompt`.

In a decode step the queries of all siblings meet one copy of their prompt's keys in one matrix product, each response's own keys apart, and
the two are joined by their softmax denominators ("Hydragen", Juravsky et al., arXiv 2402.05099). Rows lie in fixed shapes behind masks, so that a
row's numbers do not depend on what else is in the batch (bit for bit with CPU's matrix products in float32, as the tests check).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from rollout.engines.key_value_slab import Shelf, Slab

IMPLEMENTATION = "shared_prompt"


@dataclass(frozen=True)
class PackedPrompt:
    """Where one prompt lies among the tokens of a prefill, and where its keys and values go."""

    start: int
    end: int
    shelf: Shelf
    places: list[int]


@dataclass(frozen=True)
class Prefill:
    """Attention within each of several prompts that lie one behind another, without padding."""

    prompts: list[PackedPrompt]

    def attend(self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
        """query (1, heads, tokens, d), key and value (1, kv heads, tokens, d) -> (1, tokens, heads, d)."""
        found = []
        for prompt in self.prompts:
            here = slice(prompt.start, prompt.end)
            keys, values = key[:, :, here], value[:, :, here]
            for place in prompt.places:
                prompt.shelf.keys(layer)[place, :, : prompt.end - prompt.start] = keys[0]
                prompt.shelf.values(layer)[place, :, : prompt.end - prompt.start] = values[0]
            grouped = query.shape[1] != key.shape[1]
            found.append(scaled_dot_product_attention(query[:, :, here], keys, values, is_causal=True, scale=scale, enable_gqa=grouped))
        return torch.cat(found, 2).transpose(1, 2)


@dataclass(frozen=True)
class ShelfInUse:
    shelf: Shelf
    places: int
    """The first so many are computed."""
    mask: torch.Tensor
    """(places * kv heads, 1, length): 0 where a prompt has a token, -inf behind its end."""
    here: slice
    """Of the lanes of all shelves."""


@dataclass(frozen=True)
class Decode:
    """Attention of one new token of each row to its prompt and to the response so far."""

    rows: int
    responses: Slab
    write_at: torch.Tensor
    """(rows * kv heads,): where the new keys and values go, in the slab seen as (places * heads * length, d)."""
    mask: torch.Tensor
    """(rows * kv heads, 1, columns): 0 for tokens of the response, -inf behind its end. As many columns as the longest response, rounded up."""
    shelves: list[ShelfInUse]
    queries_of: torch.Tensor
    """(lanes * kv heads of all shelves,): which (row, kv head) has its queries there; any, where the lane is empty."""
    lane_of: torch.Tensor
    """(rows * kv heads,): the lane of each row and kv head."""

    def attend(self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
        """query (1, heads, rows, d), key and value (1, kv heads, rows, d) -> (1, rows, heads, d)."""
        every, size = self.rows * key.shape[1], key.shape[3]
        query = (query[0].transpose(0, 1) * scale).reshape(every, -1)  # (rows * kv heads, the queries of that head * d)
        keys, values = self.responses.keys(layer), self.responses.values(layer)
        keys.view(-1, size).index_copy_(0, self.write_at, key[0].transpose(0, 1).reshape(every, size))
        values.view(-1, size).index_copy_(0, self.write_at, value[0].transpose(0, 1).reshape(every, size))
        largest, total, weighted = (
            part[self.lane_of].view(every, query.shape[1] // size, -1) for part in self._prompts(layer, query, size)
        )
        columns = slice(0, self.mask.shape[2])
        own_keys, own_values = (kept[: self.rows].flatten(0, 1)[:, columns] for kept in (keys, values))
        scores = torch.baddbmm(self.mask, query.view(every, -1, size), own_keys.transpose(1, 2)).float()
        peak = torch.maximum(scores.amax(-1, keepdim=True), largest)
        scores.sub_(peak).exp_()
        share = largest.sub_(peak).exp_()
        weighted = torch.bmm(scores.to(own_values.dtype), own_values).float().addcmul_(weighted.float(), share)
        total = scores.sum(-1, keepdim=True).addcmul_(total, share)
        return weighted.div_(total).view(1, self.rows, -1, size).to(query.dtype)

    def _prompts(self, layer: int, query: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Of every lane's softmax over its prompt: the largest score, the sum of the exponentials (both float32), the values weighted with them."""
        queries = query[self.queries_of]
        largest, total = (query.new_empty(len(queries), query.shape[1] // size, dtype=torch.float32) for _ in range(2))
        weighted = torch.empty_like(queries)
        for use in self.shelves:
            batch, shelf = len(use.mask), use.shelf
            keys, values = shelf.keys(layer)[: use.places].flatten(0, 1), shelf.values(layer)[: use.places].flatten(0, 1)
            scores = torch.baddbmm(use.mask, queries[use.here].view(batch, -1, size), keys.transpose(1, 2)).float()
            peak = torch.amax(scores, -1, keepdim=True, out=largest[use.here].view(batch, -1, 1))
            scores.sub_(peak).exp_()
            torch.sum(scores, -1, keepdim=True, out=total[use.here].view(batch, -1, 1))
            torch.bmm(scores.to(values.dtype), values, out=weighted[use.here].view(batch, -1, size))
        return largest, total, weighted


def attention(module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, scaling: float, **more: Any) -> Any:
    """What the model's layers call: ours when the engine drives them, the library's SDPA in every other forward pass."""
    cached = more.pop("cached", None)
    if cached is None:
        return sdpa_attention_forward(module, query, key, value, mask, scaling=scaling, **more)
    return cached.attend(module.layer_idx, query, key, value, scaling), None


AttentionInterface.register(IMPLEMENTATION, attention)
AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)
