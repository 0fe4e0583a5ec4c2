"""The keys and values of everything under way, within a budget of tokens: prompts on shelves by length, responses in a slab of their own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch

from rollout.engines.key_value_slab import CacheShape, Shelf, Slab
from rollout.engines.shared_prompt_attention import Decode, ShelfInUse
from rollout.engines.slots import FEWEST_ROWS, Block, Group, Slots

SHORTEST_SHELF = 64
MOST_LANES = 8
"""Siblings that share one copy of their prompt; more siblings get more copies."""
COLUMNS = 16
"""Responses are computed in multiples of so many tokens."""


class KeyValueCache:
    """Grows as it is needed, up to `budget` tokens."""

    def __init__(self, model: Any, slots: int, budget: int):
        config = model.config.get_text_config()
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self._shape = CacheShape(config.num_hidden_layers, config.num_key_value_heads, size, model.dtype, model.device)
        self._slots, self._budget = max(slots, FEWEST_ROWS), budget
        self.bytes_peak = 0
        self.clear()

    def clear(self) -> None:
        self._shelves: dict[tuple[int, int], Shelf] = {}
        self._responses = Slab(self._shape, 0)

    @property
    def _prompt_tokens(self) -> int:
        return sum(shelf.tokens for shelf in self._shelves.values())

    @property
    def bytes(self) -> int:
        return (self._prompt_tokens + self._responses.tokens) * self._shape.bytes_per_token

    def check_fits(self, prompt: int, room: int) -> None:
        """Raises `ValueError` when a group of this prompt would not fit even alone."""
        needed = shelf_length(prompt) + FEWEST_ROWS * columns(room)
        if needed > self._budget:
            raise ValueError(
                f"a prompt of {prompt} tokens and responses of up to {room} need {needed} tokens of cache, more than "
                f"rollout.batch_tokens={self._budget}; raise it, or lower rollout.max_new_tokens"
            )

    def open(self, group: Group, rows: int) -> bool:
        """Places for the group's prompt, and for its responses beside the `rows` under way; False when there is no room now."""
        request = group.request
        if not self.make_room(rows + 1, request.sampling.max_new_tokens):
            return False
        lanes = min(MOST_LANES, 1 << (request.siblings - 1).bit_length())
        key = shelf_length(len(request.prompt_ids)), lanes
        shelf = self._shelves.setdefault(key, Shelf(self._shape, *key))
        wanted = -(-min(len(group.outside), self._slots) // lanes)
        if len(shelf.free) < wanted:
            self._grow(shelf, wanted - len(shelf.free))
        group.blocks = [
            Block(shelf, shelf.take(len(request.prompt_ids)), list(range(lanes))[::-1]) for _ in range(min(wanted, len(shelf.free)))
        ]
        return bool(group.blocks)

    def _grow(self, shelf: Shelf, missing: int) -> None:
        """By `missing` places, or twice as large for those to come, or by what the budget leaves."""
        if self._left < missing * shelf.length:
            self._shelves = {key: other for key, other in self._shelves.items() if other.used or other is shelf}
        more = min(max(missing, shelf.places), self._left // shelf.length)
        if more > 0:
            shelf.grow(shelf.places + more)
            self.bytes_peak = max(self.bytes_peak, self.bytes)

    @property
    def _left(self) -> int:
        return self._budget - self._prompt_tokens - self._responses.tokens

    def make_room(self, rows: int, room: int) -> bool:
        """Places for so many responses of up to `room` tokens; False when there is no room now."""
        slab = self._responses
        length = max(slab.length, columns(room))
        places = max(rows, FEWEST_ROWS)
        if slab.places >= places and slab.length >= length:
            return True
        available = (self._budget - self._prompt_tokens) // length
        places = max(slab.places, places)
        if places > available:
            return False
        slab.resize(max(places, min(2 * slab.places, available, self._slots)), length)
        self.bytes_peak = max(self.bytes_peak, self.bytes)
        return True

    def release(self, blocks: Iterable[Block]) -> None:
        for block in blocks:
            block.shelf.give_back(block.place)

    def move(self, source: Sequence[int], target: Sequence[int]) -> None:
        """Keys and values of responses from one slot to another."""
        for old, new in zip(source, target, strict=True):
            self._responses.tensor[:, :, new] = self._responses.tensor[:, :, old]

    def decode(self, slots: Slots) -> Decode:
        """Where the next token of every row has its keys and values, and which it attends to. There are no holes."""
        heads, device = self._shape.heads, self._shape.device
        rows_in_use = list(slots.under_way().values())
        used = len(rows_in_use)
        rows = max(used, FEWEST_ROWS)  # rows beyond those in use compute something finite that nobody reads
        length = np.ones(rows, np.int64)
        length[:used] = slots.length[:used]
        wide = columns(int(length[:used].max()))
        every_head = np.arange(heads)
        write_at = (np.arange(rows)[:, None] * heads + every_head) * self._responses.length + (length[:, None] - 1)
        mask = np.where(np.arange(wide) < length[:, None], np.float32(0), np.float32(-np.inf))
        places = np.array([row.block.place for row in rows_in_use])
        lanes = np.array([row.lane for row in rows_in_use])
        shelf_of = np.array([id(row.block.shelf) for row in rows_in_use])
        lane_of = np.zeros((rows, heads), np.int64)
        in_use: list[ShelfInUse] = []
        queries_of: list[np.ndarray] = []
        start = 0
        for shelf in self._shelves.values():
            (here,) = np.nonzero(shelf_of == id(shelf))
            if not len(here):
                continue
            highest = int(places[here].max()) + 1
            table = np.zeros((highest, shelf.lanes), np.int64)
            table[places[here], lanes[here]] = here
            queries_of.append((table[:, None] * heads + every_head[:, None]).ravel())
            lane_of[here] = start + (places[here][:, None] * heads + every_head) * shelf.lanes + lanes[here][:, None]
            end = start + len(queries_of[-1])
            in_use.append(ShelfInUse(shelf, highest, shelf.mask[:highest].repeat_interleave(heads, 0)[:, None], slice(start, end)))
            start = end
        return Decode(
            rows,
            self._responses,
            torch.from_numpy(write_at.ravel()).to(device),
            torch.from_numpy(mask.repeat(heads, 0)).to(device, self._shape.dtype)[:, None],
            in_use,
            torch.from_numpy(np.concatenate(queries_of)).to(device),
            torch.from_numpy(lane_of.ravel()).to(device),
        )


def shelf_length(prompt: int) -> int:
    """The next of 64, 96, 128, 192, 256, 384 ...: few lengths, and at most a third of a place stays empty."""
    power = 1 << max(prompt - 1, 1).bit_length()
    return max(SHORTEST_SHELF, power * 3 // 4 if prompt <= power * 3 // 4 else power)


def columns(tokens: int) -> int:
    return -(-tokens // COLUMNS) * COLUMNS
