"""The default engine: continuous batching with a transformers model, one prefill and one copy of the prompt's keys and values for siblings.

Every call of `collect` lets waiting siblings into free slots, prefills the prompts of new groups, and decodes all slots token by token until
a response ends. A response's ids and log-probabilities do not depend on what else is in the batch: matrix products of four rows and more,
masks instead of varying shapes, and attention in blocks of a fixed number of siblings give the same bits alone and in a crowd (CPU, float32).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Mapping

import numpy as np
import torch

from rollout.engines.base import Finished, FinishReason, Request, Response, Sampling
from rollout.engines.key_value_cache import KeyValueCache
from rollout.engines.prompt_reader import PromptReader
from rollout.engines.sampling import choose
from rollout.engines.shared_prompt_attention import IMPLEMENTATION, Decode, PackedPrompt, Prefill
from rollout.engines.slots import FEWEST_ROWS, Group, Row, Slots
from rollout.engines.stats import EngineStats
from rollout.policy import Policy
from rollout.weights import copy_into

STEPS = 16
"""Decode steps of one `collect` at most, so that its caller can submit."""
PREFILL_TOKENS = 8192
"""Of one forward pass, unless a single prompt is longer."""


class TransformersEngine:
    """Samples from a `Policy` in this process, `slots` responses at a time; `batch_tokens` bounds the tokens whose keys and values are kept."""

    def __init__(self, policy: Policy, slots: int = 256, batch_tokens: int = 65536, compile_decode: bool = False):
        self.policy = policy
        self.policy_version = -1
        policy.model.set_attn_implementation({"text_config": IMPLEMENTATION})
        self._text = policy.model.model.language_model
        if any(kind != "full_attention" for kind in self._text.config.layer_types):
            raise ValueError(f"policy {policy.model.name_or_path}: layers with sliding attention; expected full attention in all of them")
        on_gpu = policy.device.type == "cuda"  # a CPU would wait for a C++ compiler, and gain little
        self._decode_text = torch.compile(self._text, dynamic=True) if compile_decode and on_gpu else self._text
        self._context: int = self._text.config.max_position_embeddings
        self._reader, self._slots = PromptReader(policy), Slots(slots)
        self._cache = KeyValueCache(policy.model, slots, batch_tokens)
        self._waiting: deque[Group] = deque()  # not prefilled
        self._entering: deque[Group] = deque()  # prefilled, with siblings outside
        self._ended: list[Finished] = []
        self._samplings: list[Sampling] = []
        self._tickets = self._unfinished = 0
        self._paused = False
        self._banned = torch.tensor(policy.banned_token_ids, device=policy.device)
        self._counts: dict[str, float] = dict.fromkeys(EngineStats.__dataclass_fields__, 0)
        self._idle_since = time.perf_counter()

    @property
    def stats(self) -> EngineStats:
        whole = {name: value if name.endswith("_s") else int(value) for name, value in self._counts.items()}
        return EngineStats(**{**whole, "cached_bytes": self._cache.bytes, "cached_bytes_peak": self._cache.bytes_peak})  # type: ignore[arg-type]

    @property
    def unfinished(self) -> int:
        return self._unfinished

    def submit(self, request: Request) -> int:
        """Raises `ValueError` when prompt and response are longer than the model's context or than `batch_tokens`, or nothing is asked for."""
        prompt, room = len(request.prompt_ids), request.sampling.max_new_tokens
        if request.siblings < 1 or room < 1:
            raise ValueError(f"a request for {request.siblings} responses of up to {room} tokens; expected at least one of each")
        if prompt + room > self._context:
            raise ValueError(
                f"a prompt of {prompt} tokens and a response of up to {room} do not fit the policy's context of {self._context}; "
                "lower rollout.passages, rollout.max_passage_chars or rollout.max_new_tokens"
            )
        self._cache.check_fits(prompt, room)
        self._tickets += 1
        self._unfinished += request.siblings
        self._waiting.append(Group(self._tickets, request, deque(range(request.siblings))))
        return self._tickets

    def pause(self) -> None:
        self._paused = True

    def resume(self) -> None:
        self._paused = False

    def abort(self, tickets: Iterable[int]) -> None:
        given_up = set(tickets)
        for slot, row in self._slots.under_way().items():
            if row.group.ticket in given_up:
                self._finish(slot, "abort")
        empty = Response(np.zeros(0, np.int32), np.zeros(0, np.float32), np.zeros(0, np.float32), "abort", self.policy_version)
        for queue in (self._waiting, self._entering):
            for group in [group for group in queue if group.ticket in given_up]:
                self._ended += [Finished(group.ticket, sibling, empty) for sibling in group.outside]
                group.outside.clear()
                self._give_back(group)
                queue.remove(group)

    def update_weights(self, version: int, tensors: Mapping[str, torch.Tensor]) -> None:
        copy_into(self.policy.model, tensors)
        self.policy_version = version
        self._begin_again()

    def _begin_again(self) -> None:
        """Everything that is under way goes back to its prompt."""
        begun = {group.ticket: group for group in self._entering}
        for row in self._slots.under_way().values():
            begun[row.group.ticket] = row.group
            row.group.outside.append(row.sibling)
        for ticket in sorted(begun, reverse=True):
            group = begun[ticket]
            self._waiting.appendleft(Group(ticket, group.request, deque(sorted(group.outside))))
        self._slots.clear()
        self._entering.clear()
        self._cache.clear()
        self._reader.forget()

    @torch.inference_mode()
    def collect(self, wait_s: float = 0.0) -> list[Finished]:
        self._counts["idle_s"] += time.perf_counter() - self._idle_since
        for _ in range(STEPS):
            if self._paused or self._ended or not (self._waiting or self._entering or self._slots.used):
                break
            self._enter()
            if self._slots.used:
                self._decode()
        self._idle_since = time.perf_counter()
        found, self._ended = self._ended, []
        self._unfinished -= len(found)
        return found

    def _enter(self) -> None:
        """Let siblings into free slots as long as there are both, and sample their first tokens; prefill the prompts that they need."""
        slots, cache = self._slots, self._cache
        while slots.free and (self._entering or self._waiting):
            if sum(len(group.outside) for group in self._entering) < slots.free:
                self._prefill()
            entered: list[int] = []
            for group in list(self._entering):
                room = group.request.sampling.max_new_tokens
                slots.reserve(room)
                while group.outside and slots.free and cache.make_room(slots.used + 1, room):
                    block = next((block for block in group.blocks if block.free_lanes), None)
                    if block is None:
                        break
                    row = Row(group, group.outside.popleft(), block, block.free_lanes.pop())
                    entered.append(slots.enter(row, self._sampling(group.request)))
                if not group.outside:
                    self._entering.remove(group)
                    self._give_back(group)
            if not entered:
                return
            logits = [slots.row(slot).group.logits for slot in entered]
            self._sample(torch.stack(logits), np.array(entered))  # type: ignore[arg-type]

    def _sampling(self, request: Request) -> int:
        if request.sampling not in self._samplings:
            self._samplings.append(request.sampling)
        return self._samplings.index(request.sampling)

    def _prefill(self) -> None:
        """Take in groups from the queue, for as many siblings as there are free slots, and run their prompts through the model."""
        began, slots = time.perf_counter(), self._slots
        free = slots.free - sum(len(group.outside) for group in self._entering)
        groups: list[Group] = []
        tokens = 0
        while self._waiting and free > 0:
            group = self._waiting[0]
            tokens += len(group.request.prompt_ids)
            if groups and tokens > PREFILL_TOKENS:
                break
            if not self._cache.open(group, slots.used):
                if groups or self._entering or slots.used:
                    break
                self._cache.clear()  # nothing is under way: what remains is the shape of earlier work
                continue
            groups.append(self._waiting.popleft())
            free -= len(group.outside)
        if not groups:
            return
        alike: dict[tuple, list[Group]] = {}
        """Groups of one prompt (episodes of one question begin alike): read once, copied to the places of each."""
        for group in groups:
            request = group.request
            prompt = request.prompt_ids.tobytes(), request.image.key if request.image else "", group.blocks[0].shelf.lanes
            alike.setdefault(prompt, []).append(group)
        requests = [same[0].request for same in alike.values()]
        positions = [self._reader.positions(request) for request in requests]
        ends = np.cumsum([len(request.prompt_ids) for request in requests])
        packed = [
            PackedPrompt(
                end - len(same[0].request.prompt_ids),
                end,
                same[0].blocks[0].shelf,
                [block.place for group in same for block in group.blocks],
            )
            for same, end in zip(alike.values(), ends.tolist(), strict=True)
        ]
        try:
            hidden = self._forward(self._reader.embeddings(requests), np.concatenate(positions, 1), Prefill(packed))
        except BaseException:  # to be aborted, or tried again
            for group in reversed(groups):
                self._cache.release(group.blocks)
                group.blocks = []
                self._waiting.appendleft(group)
            raise
        logits = self._logits(hidden[torch.from_numpy(ends - 1).to(hidden.device)])
        for same, row, position in zip(alike.values(), logits, positions, strict=True):
            for group in same:
                group.logits, group.next_position = row, int(position.max()) + 1
        self._entering += groups
        self._counts["prefilled_tokens"] += int(ends[-1])
        self._counts["prefill_s"] += time.perf_counter() - began

    def _decode(self) -> None:
        """One more token for every row."""
        began, slots = time.perf_counter(), self._slots
        self._cache.move(*slots.close_holes())
        used = slots.used
        step = self._cache.decode(slots)
        every = np.arange(used)
        last = np.zeros(step.rows, np.int64)
        last[:used] = slots.ids[every, slots.length[:used] - 1]
        position = np.zeros(step.rows, np.int64)
        position[:used] = slots.position[:used] + slots.length[:used] - 1
        embeddings = self.policy.model.get_input_embeddings()(torch.from_numpy(last).to(self.policy.device))[None]
        hidden = self._forward(embeddings, np.broadcast_to(position, (3, step.rows)), step)
        self._sample(self._logits(hidden)[:used], every)
        self._counts["slot_steps_used"] += used
        self._counts["slot_steps_available"] += slots.slots
        self._counts["decode_s"] += time.perf_counter() - began

    def _forward(self, embeddings: torch.Tensor, positions: np.ndarray, cached: Prefill | Decode) -> torch.Tensor:
        """Embeddings (1, tokens, hidden) and positions (3, tokens) -> (tokens, hidden)."""
        placed = torch.from_numpy(np.ascontiguousarray(positions)[:, None]).to(self.policy.device)
        masks = dict.fromkeys(self._text.config.layer_types)  # given, so that the model makes none: the attention has its own
        text = self._decode_text if isinstance(cached, Decode) else self._text
        output = text(inputs_embeds=embeddings, position_ids=placed, attention_mask=masks, use_cache=False, cached=cached)
        return output.last_hidden_state[0]

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """(rows, hidden) -> (rows, vocabulary) float32."""
        missing = FEWEST_ROWS - len(hidden)
        padded = torch.cat([hidden, hidden[:1].expand(missing, -1)]) if missing > 0 else hidden
        return self.policy.model.lm_head(padded)[: len(hidden)].float()

    def _sample(self, logits: torch.Tensor, slots: np.ndarray) -> None:
        """Record the next token of these slots, and finish those that end with it."""
        state, device = self._slots, logits.device
        draws = torch.from_numpy(state.draws[slots, state.length[slots]]).to(device)
        kinds = state.sampling[slots]
        tokens, logprobs, chances = (np.empty(len(slots), kind) for kind in (np.int32, np.float32, np.float32))
        for kind in np.unique(kinds):
            (here,) = np.nonzero(kinds == kind)
            at = slice(None) if len(here) == len(slots) else torch.from_numpy(here).to(device)
            chosen = choose(logits[at], draws[at], self._banned, self._samplings[kind])
            for whole, part in zip((tokens, logprobs, chances), chosen, strict=True):
                whole[here] = part.cpu().numpy()
        state.record(slots, tokens, logprobs, chances)
        self._counts["sampled_tokens"] += len(slots)
        stopped = tokens == self.policy.end_token_id
        ended = stopped | (state.length[slots] == state.limit[slots])
        for slot, stop in zip(slots[ended].tolist(), stopped[ended].tolist(), strict=True):
            self._finish(slot, "stop" if stop else "length")

    def _finish(self, slot: int, reason: FinishReason) -> None:
        row = self._slots.row(slot)
        self._ended.append(Finished(row.group.ticket, row.sibling, self._slots.response(slot, reason, self.policy_version)))
        self._slots.leave(slot)
        row.block.free_lanes.append(row.lane)
        self._give_back(row.group)

    def _give_back(self, group: Group) -> None:
        """Blocks that no sibling of the group reads any more."""
        if not group.outside:
            unread = [block for block in group.blocks if len(block.free_lanes) == block.shelf.lanes]
            self._cache.release(unread)
            group.blocks = [block for block in group.blocks if block not in unread]
