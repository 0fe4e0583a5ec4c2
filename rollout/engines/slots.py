"""Responses under way, one a slot: what was sampled for each and how it goes on. The slots in use are always the first ones."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import numpy as np
import torch

from rollout.engines.base import FinishReason, Request, Response
from rollout.engines.key_value_slab import Shelf

FEWEST_ROWS = 8
"""Of a matrix product. With fewer than four, CPU's kernels add up in another order."""


@dataclass(eq=False)
class Block:
    """One copy of a prompt's keys and values, for as many siblings as its shelf has lanes."""

    shelf: Shelf
    place: int
    free_lanes: list[int]


@dataclass(eq=False)
class Group:
    """A request that was taken in, and its siblings."""

    ticket: int
    request: Request
    outside: deque[int]
    """Siblings that are not finished and not in a slot."""
    blocks: list[Block] = field(default_factory=list)
    """None before its prefill, and after its last sibling has entered and left."""
    logits: torch.Tensor | None = None
    """(vocabulary,) float32, of the first token."""
    next_position: int = 0
    """Of the first token, in all three rows of M-RoPE."""


@dataclass(eq=False)
class Row:
    """One sibling in a slot."""

    group: Group
    sibling: int
    block: Block
    lane: int


class Slots:
    """Arrays have one row a slot; `length` counts the tokens sampled so far. Slots that became free are holes until somebody enters there, or
    `close_holes` moves the last ones up."""

    def __init__(self, slots: int):
        self.slots, self.rows = slots, list[Row | None]()
        self.holes: list[int] = []
        self._places = max(slots, FEWEST_ROWS)
        self.length = np.zeros(self._places, np.int64)
        self.limit = np.zeros(self._places, np.int64)
        self.position = np.zeros(self._places, np.int64)
        self.sampling = np.zeros(self._places, np.int64)
        """Index into the samplings that the engine knows."""
        self._make_room(0)

    def _make_room(self, tokens: int) -> None:
        self.ids = np.zeros((self._places, tokens), np.int32)
        self.logprobs = np.zeros((self._places, tokens), np.float32)
        self.chances = np.zeros((self._places, tokens), np.float32)
        self.draws = np.zeros((self._places, tokens))

    def reserve(self, tokens: int) -> None:
        """Room for responses of so many tokens."""
        sampled = self.ids.shape[1]
        if tokens > sampled:
            ids, logprobs, chances, draws = self.ids, self.logprobs, self.chances, self.draws
            self._make_room(tokens)
            self.ids[:, :sampled], self.logprobs[:, :sampled] = ids, logprobs
            self.chances[:, :sampled], self.draws[:, :sampled] = chances, draws

    @property
    def used(self) -> int:
        return len(self.rows) - len(self.holes)

    @property
    def free(self) -> int:
        return self.slots - self.used

    def row(self, slot: int) -> Row:
        row = self.rows[slot]
        assert row is not None, f"slot {slot} is a hole"
        return row

    def under_way(self) -> dict[int, Row]:
        """By slot."""
        return {slot: row for slot, row in enumerate(self.rows) if row is not None}

    def enter(self, row: Row, sampling: int) -> int:
        """Returns its slot."""
        request = row.group.request
        room = request.sampling.max_new_tokens
        if self.holes:
            slot = self.holes.pop()
            self.rows[slot] = row
        else:
            slot = len(self.rows)
            self.rows.append(row)
        self.length[slot], self.limit[slot], self.position[slot], self.sampling[slot] = 0, room, row.group.next_position, sampling
        self.draws[slot, :room] = np.random.default_rng([request.seed, row.sibling]).random(room)
        return slot

    def leave(self, slot: int) -> None:
        self.rows[slot] = None
        self.holes.append(slot)

    def record(self, slots: np.ndarray, ids: np.ndarray, logprobs: np.ndarray, chances: np.ndarray) -> None:
        step = self.length[slots]
        self.ids[slots, step], self.logprobs[slots, step], self.chances[slots, step] = ids, logprobs, chances
        self.length[slots] = step + 1

    def clear(self) -> None:
        self.rows.clear()
        self.holes.clear()

    def close_holes(self) -> tuple[list[int], list[int]]:
        """Move the last rows into the holes; returns which slots went where."""
        left = self.used
        target = [slot for slot in self.holes if slot < left]
        source = [slot for slot in range(left, len(self.rows)) if self.rows[slot] is not None]
        if target:
            for array in (self.length, self.limit, self.position, self.sampling, self.ids, self.logprobs, self.chances, self.draws):
                array[target] = array[source]
            for old, new in zip(source, target, strict=True):
                self.rows[new] = self.rows[old]
        del self.rows[left:]
        self.holes.clear()
        return source, target

    def response(self, slot: int, reason: FinishReason, version: int) -> Response:
        here = slice(0, int(self.length[slot]))
        return Response(self.ids[slot, here].copy(), self.logprobs[slot, here].copy(), self.chances[slot, here].copy(), reason, version)
