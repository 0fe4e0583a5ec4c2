"""The library's own ways to generate behind the interface of our engines: whole episodes run over them, so that only the generation differs."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from rollout.engines.base import Finished, Request, Response, Sampling
from rollout.policy import Policy


def sample_with_library(policy: Policy, requests: Sequence[Request]) -> list[np.ndarray]:
    """One response to each prompt by `model.generate`, all in one batch that goes on to the longest."""
    longest = max(len(request.prompt_ids) for request in requests)
    ids = torch.full((len(requests), longest), policy.pad_token_id)
    real = torch.zeros(len(requests), longest, dtype=torch.long)
    for row, request in enumerate(requests):
        ids[row, longest - len(request.prompt_ids) :] = torch.from_numpy(request.prompt_ids.astype(np.int64))
        real[row, longest - len(request.prompt_ids) :] = 1
    inputs = {"input_ids": ids.to(policy.device), "attention_mask": real.to(policy.device)}
    pictures = [request.image for request in requests if request.image]
    if pictures:
        pixels, grids = policy.pixels(pictures)
        inputs |= {
            "pixel_values": pixels,
            "image_grid_thw": grids,
            "mm_token_type_ids": (inputs["input_ids"] == policy.image_token_id).int(),
        }
    rooms = [request.sampling.max_new_tokens for request in requests]
    sampling = replace(requests[0].sampling, max_new_tokens=max(rooms))
    with torch.inference_mode():
        found = policy.model.generate(**inputs, **library_sampling(policy, sampling))[:, longest:].cpu().numpy()
    ended = found == policy.end_token_id
    ends = np.minimum(np.where(ended.any(1), ended.argmax(1) + 1, found.shape[1]), rooms)
    return [row[:end].astype(np.int32) for row, end in zip(found, ends, strict=True)]


def library_sampling(policy: Policy, sampling: Sampling) -> dict[str, Any]:
    return {
        "do_sample": True,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "max_new_tokens": sampling.max_new_tokens,
        "eos_token_id": policy.end_token_id,
        "pad_token_id": policy.pad_token_id,
        "suppress_tokens": list(policy.banned_token_ids),
    }


class LibraryEngine:
    """`model.generate`: for all responses that are wanted at the time in one batch, prompts repeated for siblings; or for one at a time."""

    policy_version = -1

    def __init__(self, policy: Policy, at_once: int):
        self.policy, self._at_once = policy, at_once
        self._wanted: deque[tuple[int, int, Request]] = deque()
        self._tickets = 0

    @property
    def unfinished(self) -> int:
        return len(self._wanted)

    def submit(self, request: Request) -> int:
        self._tickets += 1
        self._wanted.extend((self._tickets, sibling, request) for sibling in range(request.siblings))
        return self._tickets

    def abort(self, tickets: Iterable[int]) -> None:
        given_up = set(tickets)
        self._wanted = deque(wanted for wanted in self._wanted if wanted[0] not in given_up)

    def collect(self, wait_s: float = 0.0) -> list[Finished]:
        batch = [self._wanted.popleft() for _ in range(min(self._at_once, len(self._wanted)))]
        found = sample_with_library(self.policy, [request for _, _, request in batch])
        return [Finished(ticket, sibling, response(self.policy, ids)) for (ticket, sibling, _), ids in zip(batch, found, strict=True)]


class ContinuousLibraryEngine:
    """The library's continuous batching (text only): requests enter while others run. Its scheduler has a thread of its own: `close` ends it."""

    policy_version = -1

    def __init__(self, policy: Policy, sampling: Sampling):
        from transformers import ContinuousBatchingConfig, GenerationConfig

        self.policy = policy
        how = GenerationConfig(**library_sampling(policy, sampling))
        cache = ContinuousBatchingConfig(num_blocks=2048, page_size=32, max_batch_tokens=2048, use_async_batching=False)
        self._manager = policy.model.init_continuous_batching(generation_config=how, continuous_batching_config=cache)
        self._manager.start()
        self._tickets = 0
        self._under_way: dict[str, tuple[int, int]] = {}

    @property
    def unfinished(self) -> int:
        return len(self._under_way)

    def submit(self, request: Request) -> int:
        self._tickets += 1
        for sibling in range(request.siblings):
            name = f"{self._tickets}-{sibling}"
            self._under_way[name] = self._tickets, sibling
            self._manager.add_request(request.prompt_ids.tolist(), request_id=name, max_new_tokens=request.sampling.max_new_tokens)
        return self._tickets

    def abort(self, tickets: Iterable[int]) -> None:
        given_up = set(tickets)
        for name in [name for name, (ticket, _) in self._under_way.items() if ticket in given_up]:
            self._manager.cancel_request(name)
            del self._under_way[name]

    def collect(self, wait_s: float = 0.0) -> list[Finished]:
        found: list[Finished] = []
        result = self._manager.get_result(timeout=max(wait_s, 0.02))
        while result is not None:
            if result.error:
                raise RuntimeError(f"the library's continuous batching: {result.error}")
            if result.is_finished():
                ids = np.array(result.generated_tokens, np.int32)
                found.append(Finished(*self._under_way.pop(result.request_id), response(self.policy, ids)))
            result = self._manager.get_result(timeout=0.001)
        return found

    def close(self) -> None:
        self._manager.stop(block=True, timeout=30)


def response(policy: Policy, ids: np.ndarray) -> Response:
    """Its log-probabilities are NaN: the library does not hand out those of the tokens it sampled."""
    unknown = np.full(len(ids), np.nan, np.float32)
    reason = "stop" if len(ids) and ids[-1] == policy.end_token_id else "length"
    return Response(ids, unknown, unknown, reason, -1)  # type: ignore[arg-type]
