"""Running responses, one in each slot, and their key-value cache with a budget in tokens: prompts are kept in buckets by length."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from rollout.engines.base import Request
from rollout.engines.shared_prompt_attention import Block, Decode, LengthBucket, Slab

FEWEST_ROWS = 8  # of a matrix product: with fewer than four rows, CPU kernels add in another order
SHORTEST_BUCKET = 64
MOST_LANES = 8  # siblings that share one copy of their prompt; more siblings get more copies
COLUMNS = 16  # response lengths are rounded up to a multiple of it


@dataclass(frozen=True)
class Sampled:
    """The tokens of a response so far, as in `Response`."""

    ids: np.ndarray
    logprobs: np.ndarray
    allowed: list[np.ndarray]  # as in `RunningResponse`
    versions: tuple[tuple[int, int], ...]  # as `Turn.versions`


NOTHING = Sampled(np.zeros(0, np.int32), np.zeros(0, np.float32), [], ())


@dataclass(eq=False)
class Group:
    """A request and its siblings; `pending`: numbers of the siblings that are neither finished nor in a slot."""

    ticket: int
    request: Request
    pending: deque[int]
    kept: Sampled = NOTHING  # of older weights: a group of one sibling, whose prompt ends with these tokens
    blocks: list[Block] = field(default_factory=list)  # empty before the prefill, and after the last sibling has finished
    logits: torch.Tensor | None = None  # (vocabulary,) float32, of the first token
    next_position: int = 0  # Position of the first token

    @property
    def room(self) -> int:
        """Most tokens that are still to be sampled."""
        return self.request.sampling.max_new_tokens - len(self.kept.ids)


@dataclass(eq=False)
class RunningResponse:
    group: Group
    sibling: int
    block: Block
    lane: int
    allowed: list[np.ndarray] = field(default_factory=list)  # ids for each token so far; empty without top-p and top-k


class Slots:
    """Arrays have one row per slot; `length` counts sampled tokens. A free slot is a hole until `enter` or `close_holes` puts a row there."""

    def __init__(self, slots: int):
        self.slots, self.rows = slots, dict[int, RunningResponse]()
        places = max(slots, FEWEST_ROWS)
        self.length, self.limit, self.position = (np.zeros(places, np.int64) for _ in range(3))
        self.ids, self.logprobs, self.draws = (np.zeros((places, 0), kind) for kind in (np.int32, np.float32, np.float64))

    @property
    def free(self) -> int:
        return self.slots - len(self.rows)

    def enter(self, row: RunningResponse) -> int:
        """Put the row into a free slot; returns the slot."""
        request, room = row.group.request, row.group.room
        more = room - self.ids.shape[1]
        if more > 0:
            self.ids, self.logprobs, self.draws = (np.pad(array, ((0, 0), (0, more))) for array in (self.ids, self.logprobs, self.draws))
        slot = next(slot for slot in range(self.slots) if slot not in self.rows)
        self.rows[slot] = row
        self.length[slot], self.limit[slot], self.position[slot] = 0, room, row.group.next_position
        self.draws[slot, :room] = np.random.default_rng([request.seed, row.sibling]).random(request.sampling.max_new_tokens)[-room:]
        return slot

    def close_holes(self) -> tuple[list[int], list[int]]:
        """Move the last rows into the holes; returns (sources, targets)."""
        used = len(self.rows)
        target = [slot for slot in range(used) if slot not in self.rows]
        source = sorted(slot for slot in self.rows if slot >= used)
        for array in (self.length, self.limit, self.position, self.ids, self.logprobs, self.draws):
            array[target] = array[source]
        self.rows |= {new: self.rows.pop(old) for old, new in zip(source, target, strict=True)}
        return source, target


class KeyValueCache:
    """Grows on demand, up to `budget` tokens."""

    def __init__(self, model: Any, slots: int, budget: int):
        config = model.config.get_text_config()
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        shape = (config.num_hidden_layers, 2, 0, heads, 0, size)
        self._empty = torch.zeros(shape, dtype=model.dtype, device=model.device)
        self._slots, self._budget = max(slots, FEWEST_ROWS), budget
        self.clear()

    def clear(self) -> None:
        self._buckets: dict[tuple[int, int], LengthBucket] = {}
        self._responses = Slab(self._empty)

    def _left(self) -> int:  # tokens
        return self._budget - sum(slab.places * slab.length for slab in (*self._buckets.values(), self._responses))

    def check_fits(self, prompt: int, room: int) -> None:
        """Raises `ValueError` when a group with this prompt would not fit into an empty cache."""
        if (needed := bucket_length(prompt) + FEWEST_ROWS * columns(room)) > self._budget:
            too_long = f"a prompt of {prompt} tokens and responses of up to {room} need {needed} tokens of cache"
            raise ValueError(f"{too_long}, more than rollout.batch_tokens={self._budget}; raise it, or lower rollout.max_new_tokens")

    def open(self, group: Group, rows: int) -> bool:
        """Reserve places for the group's prompt, and for one more response than the `rows` running ones; False: no room now."""
        request = group.request
        if not self.make_room(rows + 1, group.room):
            return False
        lanes = min(MOST_LANES, 1 << (request.siblings - 1).bit_length())
        key = bucket_length(len(request.prompt_ids)), lanes
        bucket = self._buckets.setdefault(key, LengthBucket(self._empty, *key))
        wanted = -(-min(len(group.pending), self._slots) // lanes)
        if len(bucket.free) < wanted:
            self._grow(bucket, wanted - len(bucket.free))
        places = [bucket.take(len(request.prompt_ids)) for _ in range(min(wanted, len(bucket.free)))]
        group.blocks = [Block(bucket, place, list(range(lanes))[::-1]) for place in places]
        return bool(group.blocks)

    def _grow(self, bucket: LengthBucket, missing: int) -> None:
        """Add `missing` places, or double the bucket, within the budget; drops unused buckets if needed."""
        if self._left() < missing * bucket.length:
            self._buckets = {key: other for key, other in self._buckets.items() if len(other.free) < other.places or other is bucket}
        more = min(max(missing, bucket.places), self._left() // bucket.length)
        if more > 0:
            bucket.grow(bucket.places + more)

    def make_room(self, rows: int, room: int) -> bool:
        """Reserve places for `rows` responses of up to `room` tokens; False: no room now."""
        slab = self._responses
        length, places = max(slab.length, columns(room)), max(slab.places, rows, FEWEST_ROWS)
        if slab.places == places and slab.length == length:
            return True
        available = (self._left() + slab.places * slab.length) // length
        if places > available:
            return False
        slab.resize(max(places, min(2 * slab.places, available, self._slots)), length)
        return True

    def decode(self, slots: Slots) -> Decode:
        """The attention of the next decode step: where keys and values of every row go, and what it attends to. Closes the holes."""
        for old, new in zip(*slots.close_holes(), strict=True):
            self._responses.tensor[:, :, new] = self._responses.tensor[:, :, old]
        heads, device = self._empty.shape[3], self._empty.device
        used = len(slots.rows)
        rows_in_use = [slots.rows[slot] for slot in range(used)]
        rows = max(used, FEWEST_ROWS)  # the extra rows compute finite numbers that are not used
        length = np.ones(rows, np.int64)
        length[:used] = slots.length[:used]
        wide = columns(int(length[:used].max()))
        every_head = np.arange(heads)
        write_at = (np.arange(rows)[:, None] * heads + every_head) * self._responses.length + (length[:, None] - 1)
        hidden = torch.arange(wide, device=device) >= to_device(length, device)[:, None]
        mask = self._empty.new_zeros(hidden.shape).masked_fill_(hidden, -torch.inf).repeat_interleave(heads, 0)
        places, lanes, bucket_of = np.array([(row.block.place, row.lane, id(row.block.bucket)) for row in rows_in_use]).T
        lane_of = np.zeros((rows, heads), np.int64)
        in_use: list[tuple[LengthBucket, torch.Tensor, slice]] = []
        queries_of: list[np.ndarray] = []
        start = 0
        for bucket in self._buckets.values():
            (here,) = np.nonzero(bucket_of == id(bucket))
            if not len(here):
                continue
            highest = int(places[here].max()) + 1
            table = np.zeros((highest, bucket.lanes), np.int64)
            table[places[here], lanes[here]] = here
            queries_of.append((table[:, None] * heads + every_head[:, None]).ravel())
            lane_of[here] = start + (places[here][:, None] * heads + every_head) * bucket.lanes + lanes[here][:, None]
            end = start + len(queries_of[-1])
            in_use.append((bucket, bucket.mask[:highest].repeat_interleave(heads, 0)[:, None], slice(start, end)))
            start = end
        return Decode(
            rows,
            self._responses,
            to_device(write_at.ravel(), device),
            mask[:, None],
            in_use,
            to_device(np.concatenate(queries_of), device),
            to_device(lane_of.ravel(), device),
        )


def to_device(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """A copy that does not wait for the work of the device."""
    return torch.from_numpy(array).to(device, non_blocking=True)


def bucket_length(prompt: int) -> int:
    """Rounds up to 64, 96, 128, 192, 256, 384, ...: few shapes, and above 64 at most a third of a place is empty."""
    power = 1 << max(prompt - 1, 1).bit_length()
    return max(SHORTEST_BUCKET, power * 3 // 4 if prompt <= power * 3 // 4 else power)


def columns(tokens: int) -> int:
    return -(-tokens // COLUMNS) * COLUMNS
