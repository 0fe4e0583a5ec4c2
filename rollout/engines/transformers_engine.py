"""The default engine: batched sampling with a transformers model, one prefill for all siblings of a prompt.

Prompts of like length are prefilled side by side (padded on the left), the cache is then fanned out to the siblings, and finished responses
leave the batch. The cache lives inside one `generate` call, so keys and values of old weights are never used after an update.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch
from transformers.cache_utils import Cache, DynamicLayer

from rollout.engines.base import Finished, Request, Response, Sampling
from rollout.policy import Policy

LEAVE_AT = 0.6
"""The batch is compacted when this fraction of its rows or fewer are still running: copying the cache costs as much as a few steps."""


class SiblingLayer(DynamicLayer):
    """Keys and values of one decoder layer, with room for the response reserved in advance: (rows, heads, slots, head size)."""

    used: int = 0
    is_initialized: bool = False

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.keys, self.values, self.is_initialized = key_states, value_states, True
            self.used = key_states.shape[2]
            return key_states, value_states
        here = slice(self.used, self.used + key_states.shape[2])
        self.keys[:, :, here], self.values[:, :, here] = key_states, value_states
        self.used = here.stop
        return self.keys[:, :, : here.stop], self.values[:, :, : here.stop]

    def fan_out(self, siblings: torch.Tensor, room: int) -> None:
        """Give every prompt (row) as many copies as it has siblings, each with `room` free slots."""
        for name in ("keys", "values"):
            prompt = getattr(self, name)
            rows, heads, size = int(siblings.sum()), prompt.shape[1], prompt.shape[3]
            reserved = prompt.new_empty(rows, heads, self.used + room, size)
            reserved[:, :, : self.used] = prompt.repeat_interleave(siblings, 0)
            setattr(self, name, reserved)

    def keep(self, rows: torch.Tensor) -> None:
        self.keys, self.values = self.keys[rows], self.values[rows]

    def get_seq_length(self) -> int:
        return self.used


class TransformersEngine:
    """Samples from a `Policy` in this process; `batch_tokens` bounds prompt plus response tokens that are generated side by side."""

    def __init__(self, policy: Policy, batch_tokens: int = 32768):
        self.policy, self.batch_tokens = policy, batch_tokens
        self.policy_version = -1
        self.sampled_tokens = 0
        self._waiting: dict[int, Request] = {}
        self._aborted: list[Finished] = []
        self._tickets = 0
        self._paused = False
        self._banned = torch.tensor(policy.banned_token_ids, device=policy.device)

    @torch.no_grad()
    def update_weights(self, version: int, tensors: Mapping[str, torch.Tensor]) -> None:
        parameters = dict(self.policy.model.named_parameters())
        if parameters.keys() != tensors.keys():
            missing, foreign = sorted(parameters.keys() - tensors.keys()), sorted(tensors.keys() - parameters.keys())
            raise ValueError(f"weights of version {version} do not fit the policy: missing {missing[:3]}, unknown {foreign[:3]}")
        for name, parameter in parameters.items():
            if parameter.shape != tensors[name].shape:
                raise ValueError(
                    f"weights of version {version}: {name} has shape {tuple(tensors[name].shape)}, not {tuple(parameter.shape)}"
                )
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])
        self.policy_version = version

    def submit(self, request: Request) -> int:
        self._tickets += 1
        self._waiting[self._tickets] = request
        return self._tickets

    @property
    def unfinished(self) -> int:
        return sum(request.siblings for request in self._waiting.values()) + len(self._aborted)

    def pause(self) -> None:
        self._paused = True

    def resume(self) -> None:
        self._paused = False

    def abort(self, tickets: Iterable[int]) -> None:
        none = Response(np.zeros(0, np.int32), np.zeros(0, np.float32), np.zeros(0, np.float32), "abort", self.policy_version)
        for ticket in tickets:
            if ticket in self._waiting:
                self._aborted += [Finished(ticket, j, none) for j in range(self._waiting.pop(ticket).siblings)]

    def collect(self, wait_s: float = 0.0) -> list[Finished]:
        found, self._aborted = self._aborted, []
        if self._paused:
            return found
        waiting, self._waiting = self._waiting, {}
        for sampling in dict.fromkeys(request.sampling for request in waiting.values()):
            tickets = [ticket for ticket, request in waiting.items() if request.sampling == sampling]
            for batch in self._batches([waiting[ticket] for ticket in tickets], sampling.max_new_tokens):
                sampled = self._sample([waiting[tickets[i]] for i in batch], sampling)
                found += [Finished(tickets[i], j, r) for i, group in zip(batch, sampled, strict=True) for j, r in enumerate(group)]
        self.sampled_tokens += sum(len(finished.response.ids) for finished in found)
        return found

    def _batches(self, requests: Sequence[Request], room: int) -> Iterator[list[int]]:
        """Indices of requests of like length, within the token budget (a single request may exceed it)."""
        batch: list[int] = []
        rows = 0
        for i in sorted(range(len(requests)), key=lambda i: len(requests[i].prompt_ids)):
            request = requests[i]
            if batch and (rows + request.siblings) * (len(request.prompt_ids) + room) > self.batch_tokens:
                yield batch
                batch, rows = [], 0
            batch.append(i)
            rows += request.siblings
        if batch:
            yield batch

    @torch.inference_mode()
    def _sample(self, requests: list[Request], sampling: Sampling) -> list[list[Response]]:
        policy, device = self.policy, self.policy.device
        hidden, cache, padding, position = self._prefill(requests)
        siblings = torch.tensor([request.siblings for request in requests], device=device)
        for layer in cache.layers:
            layer.fan_out(siblings, sampling.max_new_tokens)
        logits = policy.model.lm_head(hidden).repeat_interleave(siblings, 0)
        padding, position = padding.repeat_interleave(siblings, 0), position.repeat_interleave(siblings)
        streams = [np.random.default_rng([request.seed, j]) for request in requests for j in range(request.siblings)]
        draws = torch.from_numpy(np.stack([stream.random(sampling.max_new_tokens) for stream in streams])).to(device)

        rows = len(streams)
        ids = torch.zeros(rows, sampling.max_new_tokens, dtype=torch.long, device=device)
        logprobs = torch.zeros(rows, sampling.max_new_tokens, device=device)
        drawn = torch.zeros_like(logprobs)
        lengths = torch.full((rows,), sampling.max_new_tokens, device=device)
        running = torch.arange(rows, device=device)  # batch row -> response
        done = torch.zeros(rows, dtype=torch.bool, device=device)
        for step in range(sampling.max_new_tokens):
            token, logprob, chance = self._choose(logits.float(), draws[running, step], sampling)
            active = running[~done]
            ids[active, step], logprobs[active, step], drawn[active, step] = token[~done], logprob[~done], chance[~done]
            ended = (token == policy.end_token_id) & ~done
            lengths[running[ended]] = step + 1
            done = done | ended
            left = int((~done).sum())
            if left == 0 or step + 1 == sampling.max_new_tokens:
                break
            if left <= LEAVE_AT * len(running):
                keep = (~done).nonzero()[:, 0]
                running, token, position, padding, done = running[keep], token[keep], position[keep], padding[keep], done[keep]
                for layer in cache.layers:
                    layer.keep(keep)
            seen = torch.ones(len(running), step + 1, dtype=torch.bool, device=device)
            output = policy.model.model(
                input_ids=token[:, None],
                position_ids=(position + step)[None, :, None].expand(3, -1, -1),
                attention_mask=torch.cat([padding, seen], 1)[:, None, None],
                past_key_values=cache,
                use_cache=True,
            )
            logits = policy.model.lm_head(output.last_hidden_state[:, 0])
        return self._responses(requests, *(found.cpu().numpy() for found in (ids, logprobs, drawn, lengths)))

    def _prefill(self, requests: list[Request]) -> tuple[torch.Tensor, Cache, torch.Tensor, torch.Tensor]:
        """Hidden state of the last prompt token (prompts, hidden), the cache, which slots hold tokens (prompts, length), next positions."""
        policy, device = self.policy, self.policy.device
        length = max(len(request.prompt_ids) for request in requests)
        ids = np.full((len(requests), length), policy.pad_token_id, np.int64)
        positions = np.zeros((3, len(requests), length), np.int64)
        real = np.zeros((len(requests), length), bool)
        for i, request in enumerate(requests):
            here = slice(length - len(request.prompt_ids), length)
            ids[i, here], real[i, here] = request.prompt_ids, True
            positions[:, i, here] = policy.positions(request.prompt_ids, policy.patches(request.image)[1] if request.image else None)
        slots = torch.from_numpy(real).to(device)
        causal = torch.ones(length, length, dtype=torch.bool, device=device).tril()
        mask = (causal & slots[:, None]) | torch.eye(length, dtype=torch.bool, device=device)
        pictures = [request.image for request in requests if request.image]
        pixels, grids = policy.pixels(pictures) if pictures else (None, None)
        cache = Cache(layers=[SiblingLayer() for _ in policy.model.model.language_model.layers])
        output = policy.model.model(
            input_ids=torch.from_numpy(ids).to(device),
            pixel_values=pixels,
            image_grid_thw=grids,
            position_ids=torch.from_numpy(positions).to(device),
            attention_mask=mask[:, None],
            past_key_values=cache,
            use_cache=True,
        )
        following = torch.from_numpy(positions.max((0, 2)) + 1).to(device)
        return output.last_hidden_state[:, -1], cache, slots, following

    def _choose(self, logits: torch.Tensor, draw: torch.Tensor, sampling: Sampling) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Next token of each row by inverting its cumulative distribution at `draw`; its log-probability at temperature 1, and as drawn."""
        logprobs = logits.log_softmax(-1)
        allowed = logits.index_fill(1, self._banned, -torch.inf)
        if sampling.temperature == 0:
            token = allowed.argmax(-1)
            chance = torch.zeros_like(logprobs[:, 0])
        else:
            allowed = truncate(allowed / sampling.temperature, sampling.top_p, sampling.top_k)
            cumulative = allowed.double().softmax(-1).cumsum(-1)
            token = torch.searchsorted(cumulative, (draw * cumulative[:, -1])[:, None], right=True)[:, 0].clamp(max=logits.shape[1] - 1)
            chance = allowed.log_softmax(-1).gather(1, token[:, None])[:, 0]
        return token, logprobs.gather(1, token[:, None])[:, 0], chance

    def _responses(
        self, requests: list[Request], ids: np.ndarray, logprobs: np.ndarray, drawn: np.ndarray, lengths: np.ndarray
    ) -> list[list[Response]]:
        end, row, result = self.policy.end_token_id, 0, []
        for request in requests:
            siblings = []
            for _ in range(request.siblings):
                n = lengths[row]
                stopped = bool(ids[row, n - 1] == end)
                found = ids[row, :n].astype(np.int32), logprobs[row, :n].copy(), drawn[row, :n].copy()
                siblings.append(Response(*found, "stop" if stopped else "length", self.policy_version))
                row += 1
            result.append(siblings)
        return result


def truncate(logits: torch.Tensor, top_p: float, top_k: int) -> torch.Tensor:
    """Logits (rows, vocabulary) with everything outside the top k tokens and the top-p nucleus (Holtzman et al., 1904.09751) at -inf."""
    if top_k:
        smallest = logits.topk(min(top_k, logits.shape[1])).values[:, -1:]
        logits = logits.masked_fill(logits < smallest, -torch.inf)
    if top_p < 1:
        ordered, order = logits.sort(-1, descending=True)
        before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
        logits = logits.masked_fill((before >= top_p).scatter(1, order, before >= top_p), -torch.inf)
    return logits
