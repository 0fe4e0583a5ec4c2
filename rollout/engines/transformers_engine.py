"""The default engine: continuous batching with a transformers model; siblings share the prefill and the keys and values of their prompt.

Ids and log-probs do not depend on the rest of the batch, bit for bit (CPU, float32): matrix products have at least four rows, masks replace
varying shapes, and attention works in blocks of a fixed number of siblings.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from rollout.engines.base import EngineStats, Request, Response, Sampling
from rollout.engines.few_rows import speed_up_few_rows
from rollout.engines.key_value_cache import FEWEST_ROWS, Group, KeyValueCache, RunningResponse, Sampled, Slots, to_device
from rollout.engines.sampling import sample_tokens
from rollout.engines.shared_prompt_attention import IMPLEMENTATION, Decode, Prefill
from rollout.policies import Policy
from rollout.records import AllowedTokens, FinishReason, Image
from rollout.weight_buckets import copy_into

STEPS = 16  # most decode steps of one `collect`, so that its caller can submit
PREFILL_TOKENS = 8192  # of one forward pass, unless a single prompt is longer
FEATURE_TOKENS = 65536  # picture tokens whose features are kept for later turns: half a gigabyte at hidden size 3584 in bfloat16


class TransformersEngine:
    """Samples from a `Policy` in this process. `slots`: responses at a time; `batch_tokens`: budget of the key-value cache.
    `partial`: responses keep their tokens when the weights are replaced; their keys and values are computed anew."""

    def __init__(self, policy: Policy, slots: int = 256, batch_tokens: int = 65536, partial: bool = False):
        self.policy, self._partial = policy, partial
        self.policy_version = -1
        policy.use_attention(IMPLEMENTATION)
        speed_up_few_rows(policy.model)
        self._slots = Slots(slots)
        self._features: dict[str, torch.Tensor] = {}  # of pictures, with these weights
        self._cache = KeyValueCache(policy.model, slots, batch_tokens)
        self._waiting: deque[Group] = deque()  # not prefilled
        self._entering: deque[Group] = deque()  # prefilled, with pending siblings
        self._ended: list[Response] = []
        self._tickets = 0
        self._banned = torch.tensor(policy.banned_token_ids, dtype=torch.long, device=policy.device)
        self.stats = EngineStats()

    @property
    def unfinished(self) -> int:
        pending = sum(len(group.pending) for queue in (self._waiting, self._entering) for group in queue)
        return pending + len(self._slots.rows) + len(self._ended)

    def submit(self, request: Request) -> int:
        """Raises `ValueError` when prompt and response are longer than the model's context or than `batch_tokens`."""
        request.check_context(self.policy.context)
        room = request.sampling.max_new_tokens
        self._cache.check_fits(len(request.prompt_ids) + room * self._partial, room)
        self._tickets += 1
        self._waiting.append(Group(self._tickets, request, deque(range(request.siblings))))
        return self._tickets

    def abort(self, tickets: Iterable[int]) -> None:
        dropped = set(tickets)
        for slot, row in list(self._slots.rows.items()):
            if row.group.ticket in dropped:
                self._leave(slot)
        for queue in (self._waiting, self._entering):
            for group in [group for group in queue if group.ticket in dropped]:
                group.pending.clear()
                self._release_blocks(group)
                queue.remove(group)
        self._ended = [response for response in self._ended if response.ticket not in dropped]

    def update_weights(self, version: int, tensors: Mapping[str, torch.Tensor]) -> None:
        copy_into(self.policy.model, tensors)
        self._restart_all(keep=self._partial)
        self.policy_version = version

    def _restart_all(self, keep: bool = False) -> None:
        """Unfinished responses start again from their prompts; with `keep`, from the last token that they have."""
        begun = {id(group): group for group in (*self._waiting, *self._entering)}
        for slot, row in self._slots.rows.items():
            group = row.group
            if keep:
                ids = np.concatenate([group.request.prompt_ids, self._slots.ids[slot, : self._slots.length[slot]]])
                group = Group(group.ticket, replace(group.request, prompt_ids=ids, siblings=1), deque(), self._sampled(slot))
            begun[id(group)] = group
            group.pending.append(row.sibling)
        again = sorted(begun.values(), key=lambda group: group.ticket)
        self._waiting = deque(Group(group.ticket, group.request, deque(sorted(group.pending)), group.kept) for group in again)
        self._slots.rows.clear()
        self._entering.clear()
        self._cache.clear()
        self._features.clear()

    @torch.inference_mode()
    def collect(self, wait_s: float = 0.0) -> list[Response]:
        try:
            for _ in range(STEPS):
                if self._ended or not (self._waiting or self._entering or self._slots.rows):
                    break
                self._enter()
                if self._slots.rows:
                    self._decode()
        except BaseException:  # leave nothing half done
            self._restart_all()
            raise
        found, self._ended = self._ended, []
        return found

    def _enter(self) -> None:
        """Prefill prompts, put siblings into free slots, and sample their first tokens."""
        slots, cache = self._slots, self._cache
        while slots.free and (self._entering or self._waiting):
            if sum(len(group.pending) for group in self._entering) < slots.free:
                self._prefill()
            entered: list[int] = []
            for group in list(self._entering):
                while group.pending and slots.free and cache.make_room(len(slots.rows) + 1, group.room):
                    block = next((block for block in group.blocks if block.free_lanes), None)
                    if block is None:
                        break
                    row = RunningResponse(group, group.pending.popleft(), block, block.free_lanes.pop())
                    entered.append(slots.enter(row))
                if not group.pending:
                    self._entering.remove(group)
                    self._release_blocks(group)
            if not entered:
                return
            logits = [slots.rows[slot].group.logits for slot in entered]
            self._sample(torch.stack(logits), np.array(entered))  # type: ignore[arg-type]

    def _prefill(self) -> None:
        """Run the prompts of waiting groups through the model, for as many siblings as there are free slots."""
        began, slots = time.perf_counter(), self._slots
        free = slots.free - sum(len(group.pending) for group in self._entering)
        groups: list[Group] = []
        tokens = 0
        while len(groups) < len(self._waiting) and free > 0:
            group = self._waiting[len(groups)]
            tokens += len(group.request.prompt_ids)
            if groups and tokens > PREFILL_TOKENS:
                break
            if not self._cache.open(group, len(slots.rows)):
                if groups or self._entering or slots.rows:
                    break
                self._cache.clear()  # no request is running: free what earlier ones reserved
                continue
            groups.append(group)
            free -= len(group.pending)
        if not groups:
            return
        requests = [group.request for group in groups]
        positions = [self.policy.positions(request.prompt_ids, request.image) for request in requests]
        lengths = [len(request.prompt_ids) for request in requests]
        ends = np.cumsum(lengths)
        prompts = [(slice(end - length, end), group.blocks) for group, end, length in zip(groups, ends.tolist(), lengths, strict=True)]
        hidden = self._forward(self._embedded(requests), np.concatenate(positions, 1), Prefill(prompts))
        logits = self._logits(hidden[to_device(ends - 1, hidden.device)])
        for group, row, position in zip(groups, logits, positions, strict=True):
            group.logits, group.next_position = row, int(position.max()) + 1
        self._entering += [self._waiting.popleft() for _ in groups]
        self.stats.prefill_s += time.perf_counter() - began

    def _decode(self) -> None:
        """One more token for every row."""
        began, slots, used = time.perf_counter(), self._slots, len(self._slots.rows)
        step = self._cache.decode(slots)
        every = np.arange(used)
        last, position = np.zeros((2, step.rows), np.int64)
        last[:used] = slots.ids[every, slots.length[:used] - 1]
        position[:used] = slots.position[:used] + slots.length[:used] - 1
        embedded = self.policy.embed(to_device(last, self.policy.device))
        hidden = self._forward(embedded, np.broadcast_to(position, (self.policy.axes, step.rows)), step)
        self._sample(self._logits(hidden)[:used], every)
        self.stats.slot_steps_used += used
        self.stats.slot_steps_available += slots.slots
        self.stats.decode_s += time.perf_counter() - began

    def _embedded(self, requests: Sequence[Request]) -> dict[str, Any]:
        """Inputs of the decoder for the concatenated prompts."""
        ids = to_device(np.concatenate([request.prompt_ids for request in requests]).astype(np.int64), self.policy.device)
        pictures = [request.image for request in requests if request.image and self.policy.reads_pictures]
        return self.policy.embed(ids, [self._picture_features(image) for image in pictures])

    def _picture_features(self, image: Image) -> torch.Tensor:
        """(parts, tokens, hidden). One picture at a time, so that its features do not depend on others."""
        if image.key not in self._features:
            (features,) = self.policy.features(self.policy.pixels([image]))
            if sum(kept.shape[1] for kept in self._features.values()) > FEATURE_TOKENS:
                self._features.clear()
            self._features[image.key] = features
        return self._features[image.key]

    def _forward(self, embedded: dict[str, Any], positions: np.ndarray, cached: Prefill | Decode) -> torch.Tensor:
        """Positions (axes, tokens) -> (tokens, hidden)."""
        return self.policy.hidden(embedded, to_device(np.array(positions), self.policy.device), cached=cached)

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """(rows, hidden) -> (rows, vocabulary) float32."""
        missing = FEWEST_ROWS - len(hidden)
        padded = torch.cat([hidden, hidden[:1].expand(missing, -1)]) if missing > 0 else hidden
        return self.policy.lm_head(padded)[: len(hidden)].float()

    def _sample(self, logits: torch.Tensor, slots: np.ndarray) -> None:
        """Sample the next token of these slots, and finish the responses that end with it."""
        state, device = self._slots, logits.device
        draws = to_device(state.draws[slots, state.length[slots]], device)
        rows = [state.rows[slot] for slot in slots.tolist()]
        alike: dict[Sampling, list[int]] = {}
        for i, row in enumerate(rows):
            alike.setdefault(row.group.request.sampling, []).append(i)
        tokens, logprobs = np.empty(len(slots), np.int32), np.empty(len(slots), np.float32)
        for sampling, here in alike.items():
            at = slice(None) if len(here) == len(slots) else to_device(np.array(here), device)
            token, logprob, allowed = sample_tokens(logits[at], draws[at], self._banned, sampling)
            tokens[here], logprobs[here] = torch.stack([token.double(), logprob.double()]).cpu().numpy()  # a step waits for the device once
            if allowed is not None:
                ids = allowed.nonzero()[:, 1].int().cpu().split(allowed.sum(1).tolist())
                for i, drawn_from in zip(here, ids, strict=True):
                    rows[i].allowed.append(drawn_from.numpy())
        state.ids[slots, state.length[slots]], state.logprobs[slots, state.length[slots]] = tokens, logprobs
        state.length[slots] += 1
        self.stats.sampled_tokens += len(slots)
        stopped = tokens == self.policy.end_token_id
        ended = stopped | (state.length[slots] == state.limit[slots])
        for slot, stop in zip(slots[ended].tolist(), stopped[ended].tolist(), strict=True):
            self._finish(slot, "stop" if stop else "length")

    def _finish(self, slot: int, reason: FinishReason) -> None:
        row, found = self._slots.rows[slot], self._sampled(slot)
        temperature, allowed = row.group.request.sampling.temperature or 1.0, None
        if found.allowed:
            allowed = AllowedTokens(np.concatenate(found.allowed), np.array([len(ids) for ids in found.allowed], np.int32))
        sampled = found.ids, found.logprobs, reason, self.policy_version
        self._ended.append(Response(row.group.ticket, row.sibling, *sampled, temperature, allowed, found.versions[:-1]))
        self._leave(slot)

    def _sampled(self, slot: int) -> Sampled:
        row, length = self._slots.rows[slot], int(self._slots.length[slot])
        kept = row.group.kept
        ids, logprobs = (
            np.concatenate([before, array[slot, :length]])
            for before, array in ((kept.ids, self._slots.ids), (kept.logprobs, self._slots.logprobs))
        )
        return Sampled(ids, logprobs, kept.allowed + row.allowed, (*kept.versions, (self.policy_version, length)))

    def _leave(self, slot: int) -> None:
        row = self._slots.rows.pop(slot)
        row.block.free_lanes.append(row.lane)
        self._release_blocks(row.group)

    def _release_blocks(self, group: Group) -> None:
        """Free the blocks that no sibling reads any more."""
        if not group.pending:
            for block in [block for block in group.blocks if len(block.free_lanes) == block.bucket.lanes]:
                block.bucket.give_back(block.place)
                group.blocks.remove(block)
