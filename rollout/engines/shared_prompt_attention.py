"""Attention of siblings to the prompt that they share, registered with transformers as `shared_prompt`.

In a decode step the queries of all siblings meet one copy of their prompt's keys in one matrix product, each response's own keys in another; the
two are merged by their softmax denominators ("Hydragen", Juravsky et al., arXiv 2402.05099). Shapes are fixed and masked, so that a row does not
depend on the rest of the batch (bit for bit on CPU in float32).
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask


class Slab:
    """Keys and values of `places` x `length` tokens. All its numbers are finite, so masked products are exactly 0."""

    def __init__(self, empty: torch.Tensor, length: int = 0):
        """`empty`: (layers, 2, 0, kv heads, 0, head size), with the dtype and the device of the model."""
        self.tensor = empty
        self.resize(0, length)

    @property
    def places(self) -> int:
        return self.tensor.shape[2]

    @property
    def length(self) -> int:
        return self.tensor.shape[4]

    def layer(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Views of keys and values, (places, heads, length, head size) each."""
        return self.tensor[layer, 0], self.tensor[layer, 1]

    def resize(self, places: int, length: int) -> None:
        layers, both, old_places, heads, old_length, size = self.tensor.shape
        larger = self.tensor.new_zeros(layers, both, places, heads, length, size)
        larger[:, :, :old_places, :, :old_length] = self.tensor
        self.tensor = larger


class LengthBucket(Slab):
    """Prompts of up to `length` tokens. A place holds one prompt, for up to `lanes` siblings that read it together."""

    def __init__(self, empty: torch.Tensor, length: int, lanes: int):
        super().__init__(empty, length)
        self.lanes = lanes
        self.free: list[int] = []
        self.mask = empty.new_zeros(0, length)  # (places, length): 0 for prompt tokens, -inf after them

    def grow(self, places: int) -> None:
        self.free += range(self.places, places)
        heapq.heapify(self.free)
        self.resize(places, self.length)
        self.mask = torch.cat([self.mask, self.mask.new_zeros(places - len(self.mask), self.length)])

    def take(self, prompt_tokens: int) -> int:
        """Returns the lowest free place, because attention is computed for all places up to the highest in use."""
        place = heapq.heappop(self.free)
        self.mask[place, :prompt_tokens] = 0
        self.mask[place, prompt_tokens:] = -torch.inf
        return place

    def give_back(self, place: int) -> None:
        heapq.heappush(self.free, place)


@dataclass(eq=False)
class Block:
    """One copy of a prompt's keys and values, for as many siblings as its bucket has lanes."""

    bucket: LengthBucket
    place: int
    free_lanes: list[int]


@dataclass(frozen=True)
class Prefill:
    """Attention within each of several prompts, which are concatenated without padding."""

    prompts: list[tuple[slice, list[Block]]]  # for each prompt: its tokens, and where its keys and values go

    def attend(self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
        """query (1, heads, tokens, d), key and value (1, kv heads, tokens, d) -> (1, tokens, heads, d)."""
        found = []
        grouped = query.shape[1] != key.shape[1]
        for here, blocks in self.prompts:
            keys, values = key[:, :, here], value[:, :, here]
            for block in blocks:
                for kept, new in zip(block.bucket.layer(layer), (keys, values), strict=True):
                    kept[block.place, :, : new.shape[2]] = new[0]
            found.append(scaled_dot_product_attention(query[:, :, here], keys, values, is_causal=True, scale=scale, enable_gqa=grouped))
        return torch.cat(found, 2).transpose(1, 2)


@dataclass(frozen=True)
class Decode:
    """Attention of one new token of each row to its prompt and to the response so far."""

    rows: int
    responses: Slab
    write_at: torch.Tensor  # (rows * kv heads,): places of the new keys and values in the slab as (places * heads * length, d)
    mask: torch.Tensor  # (rows * kv heads, 1, columns): 0 for response tokens, -inf after them
    buckets: list[tuple[LengthBucket, torch.Tensor, slice]]
    """(bucket in use; mask of its first places, (places * kv heads, 1, length): 0 for prompt tokens, -inf after them; its slice of all lanes)."""
    queries_of: torch.Tensor  # (lanes * kv heads of all buckets,): the (row, kv head) whose queries are there; arbitrary in empty lanes
    lane_of: torch.Tensor  # (rows * kv heads,): the lane of each row and kv head

    def attend(self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
        """query (1, heads, rows, d), key and value (1, kv heads, rows, d) -> (1, rows, heads, d)."""
        every, size = self.rows * key.shape[1], key.shape[3]
        query = (query[0].transpose(0, 1) * scale).reshape(every, -1)  # (rows * kv heads, the queries of that head * d)
        keys, values = self.responses.layer(layer)
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
        """For every lane's softmax over its prompt: largest score, sum of exponentials (both float32), weighted values."""
        queries = query[self.queries_of]
        largest, total = (query.new_empty(len(queries), query.shape[1] // size, dtype=torch.float32) for _ in range(2))
        weighted = torch.empty_like(queries)
        for bucket, mask, here in self.buckets:
            batch = len(mask)
            keys, values = (kept.flatten(0, 1)[:batch] for kept in bucket.layer(layer))
            scores = torch.baddbmm(mask, queries[here].view(batch, -1, size), keys.transpose(1, 2)).float()
            peak = torch.amax(scores, -1, keepdim=True, out=largest[here].view(batch, -1, 1))
            scores.sub_(peak).exp_()
            torch.sum(scores, -1, keepdim=True, out=total[here].view(batch, -1, 1))
            torch.bmm(scores.to(values.dtype), values, out=weighted[here].view(batch, -1, size))
        return largest, total, weighted


def attention(module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, scaling: float, **more: Any) -> Any:
    """Called by the model's layers: `Prefill` or `Decode` in the engine, the library's SDPA in every other forward pass."""
    cached = more.pop("cached", None)
    if cached is None:
        return sdpa_attention_forward(module, query, key, value, mask, scaling=scaling, **more)
    return cached.attend(module.layer_idx, query, key, value, scaling), None


IMPLEMENTATION = "shared_prompt"
AttentionInterface.register(IMPLEMENTATION, attention)
AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)
