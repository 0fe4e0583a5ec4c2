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
    lanes: torch.Tensor
    """(places * kv heads * lanes,): which (row, kv head) has its query there; any, where the lane is empty."""


@dataclass(frozen=True)
class Decode:
    """Attention of one new token of each row to its prompt and to the response so far."""

    rows: int
    responses: Slab
    columns: int
    """Tokens of the longest response, rounded up."""
    write_at: torch.Tensor
    """(rows * kv heads,): where the new keys and values go, in the slab seen as (places * heads * length, d)."""
    mask: torch.Tensor
    """(rows, 1, columns): 0 for tokens of the response, -inf behind its end."""
    shelves: list[ShelfInUse]
    read_at: torch.Tensor
    """(rows * kv heads,): where each row's part lies among the lanes of all shelves."""

    def attend(self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
        """query (1, heads, rows, d), key and value (1, kv heads, rows, d) -> (1, rows, heads, d)."""
        heads, size = key.shape[1], key.shape[3]
        every = self.rows * heads  # a batch of matrix products has one for each row and head of keys
        query = (query[0].transpose(0, 1) * scale).reshape(every, -1)  # (rows * kv heads, queries of that head * d)
        keys, values = self.responses.keys(layer), self.responses.values(layer)
        keys.view(-1, size).index_copy_(0, self.write_at, key[0].transpose(0, 1).reshape(every, size))
        values.view(-1, size).index_copy_(0, self.write_at, value[0].transpose(0, 1).reshape(every, size))
        own_keys = keys[: self.rows].flatten(0, 1)[:, : self.columns]
        own_values = values[: self.rows].flatten(0, 1)[:, : self.columns]
        own = _part(query.view(every, -1, size), own_keys, own_values, self.mask, heads)
        parts = []
        for use in self.shelves:
            queries = query[use.lanes].view(use.places * heads, -1, size)
            shelf_keys, shelf_values = use.shelf.keys(layer)[: use.places], use.shelf.values(layer)[: use.places]
            mask = use.shelf.mask[: use.places, None]
            parts.append(_part(queries, shelf_keys.flatten(0, 1), shelf_values.flatten(0, 1), mask, heads))
        lanes = [torch.cat([part[i].reshape(-1, width) for part in parts]) for i, width in enumerate(self._widths(query, size))]
        prompt = [lane[self.read_at].view(kind.shape) for lane, kind in zip(lanes, own, strict=True)]
        return _join(own, prompt).view(1, self.rows, -1, size)

    @staticmethod
    def _widths(query: torch.Tensor, size: int) -> tuple[int, int, int]:
        return query.shape[1] // size, query.shape[1] // size, query.shape[1]


def _part(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, heads: int) -> list[torch.Tensor]:
    """Softmax attention before its division: the largest score, the sum of the exponentials, and the values weighted with them.

    query (batch * heads, queries, d), keys and values (batch * heads, tokens, d), mask (batch, 1, tokens).
    """
    scores = torch.bmm(query, keys.transpose(1, 2))
    scores.view(-1, heads, *scores.shape[1:]).add_(mask[:, None])
    largest = scores.amax(-1, keepdim=True)
    scores.sub_(largest).exp_()
    return [largest, scores.sum(-1, keepdim=True), torch.bmm(scores, values)]


def _join(own: list[torch.Tensor], prompt: list[torch.Tensor]) -> torch.Tensor:
    largest = torch.maximum(own[0], prompt[0])
    one, two = (own[0] - largest).exp_(), (prompt[0] - largest).exp_()
    return (own[2].mul_(one).add_(prompt[2].mul_(two))).div_(own[1].mul_(one).add_(prompt[1].mul_(two)))


def attention(module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, scaling: float, **more: Any) -> Any:
    """What the model's layers call: ours when the engine drives them, the library's SDPA in every other forward pass."""
    cached = more.pop("cached", None)
    if cached is None:
        return sdpa_attention_forward(module, query, key, value, mask, scaling=scaling, **more)
    return cached.attend(module.layer_idx, query, key, value, scaling), None


AttentionInterface.register(IMPLEMENTATION, attention)
AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)
