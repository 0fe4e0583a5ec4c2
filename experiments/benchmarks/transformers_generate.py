"""transformers' own ways to generate, with the interface of our engines. Log-probs are zeros: the library returns none."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch

from rollout.engines.base import Request, Response, Sampling, generate
from rollout.policies import Policy


class GenerateEngine:
    """`model.generate` for up to `at_once` responses in one batch, prompts repeated for siblings."""

    policy_version = -1

    def __init__(self, policy: Policy, at_once: int):
        self.policy, self._at_once = policy, at_once
        self._waiting: deque[tuple[int, int, Request]] = deque()
        self._tickets = 0

    @property
    def unfinished(self) -> int:
        return len(self._waiting)

    def submit(self, request: Request) -> int:
        self._tickets += 1
        self._waiting.extend((self._tickets, sibling, request) for sibling in range(request.siblings))
        return self._tickets

    def abort(self, tickets: Iterable[int]) -> None:
        self._waiting.clear()

    def collect(self, wait_s: float = 0.0) -> list[Response]:
        batch = [self._waiting.popleft() for _ in range(min(self._at_once, len(self._waiting)))]
        found = self._generate([request for _, _, request in batch])
        return [response(self.policy, ticket, sibling, ids) for (ticket, sibling, _), ids in zip(batch, found, strict=True)]

    def _generate(self, requests: Sequence[Request]) -> list[np.ndarray]:
        policy, longest = self.policy, max(len(request.prompt_ids) for request in requests)
        ids = torch.full((len(requests), longest), policy.pad_token_id)
        real = torch.zeros(len(requests), longest, dtype=torch.long)
        for row, request in enumerate(requests):
            ids[row, longest - len(request.prompt_ids) :] = torch.from_numpy(request.prompt_ids.astype(np.int64))
            real[row, longest - len(request.prompt_ids) :] = 1
        inputs = {"input_ids": ids.to(policy.device), "attention_mask": real.to(policy.device)}
        if pictures := [request.image for request in requests if request.image]:
            inputs |= policy.pictured(inputs["input_ids"], pictures)
        rooms = [request.sampling.max_new_tokens for request in requests]
        with torch.inference_mode():
            options = sampling_options(policy, requests[0].sampling) | {"max_new_tokens": max(rooms)}
            found = policy.model.generate(**inputs, **options)[:, longest:].cpu().numpy()
        ended = found == policy.end_token_id
        ends = np.minimum(np.where(ended.any(1), ended.argmax(1) + 1, found.shape[1]), rooms)
        return [row[:end].astype(np.int32) for row, end in zip(found, ends, strict=True)]


class ContinuousBatchingEngine:
    """The library's continuous batching (text only): requests enter while others run. `close` ends its scheduler thread."""

    policy_version = -1

    def __init__(self, policy: Policy, sampling: Sampling):
        from transformers import ContinuousBatchingConfig, GenerationConfig

        self.policy = policy
        generation = GenerationConfig(**sampling_options(policy, sampling))
        cache = ContinuousBatchingConfig(num_blocks=2048, page_size=32, max_batch_tokens=2048, use_async_batching=False)
        self._manager = policy.model.init_continuous_batching(generation_config=generation, continuous_batching_config=cache)
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
        self._under_way.clear()

    def collect(self, wait_s: float = 0.0) -> list[Response]:
        found: list[Response] = []
        result = self._manager.get_result(timeout=max(wait_s, 0.02))
        while result is not None:
            if result.error:
                raise RuntimeError(f"the library's continuous batching: {result.error}")
            if result.is_finished():
                ids = np.array(result.generated_tokens, np.int32)
                found.append(response(self.policy, *self._under_way.pop(result.request_id), ids))
            result = self._manager.get_result(timeout=0.001)
        return found

    def close(self) -> None:
        self._manager.stop(block=True, timeout=30)


def sampling_options(policy: Policy, sampling: Sampling) -> dict[str, Any]:
    names = ("temperature", "top_p", "top_k", "max_new_tokens")
    tokens = {"eos_token_id": policy.end_token_id, "pad_token_id": policy.pad_token_id, "suppress_tokens": list(policy.banned_token_ids)}
    return {"do_sample": True, **{name: getattr(sampling, name) for name in names}, **tokens}


def response(policy: Policy, ticket: int, sibling: int, ids: np.ndarray) -> Response:
    reason = "stop" if len(ids) and ids[-1] == policy.end_token_id else "length"
    return Response(ticket, sibling, ids, np.zeros(len(ids), np.float32), reason, -1)  # type: ignore[arg-type]


def tokens_per_second(engine: Any, requests: Sequence[Request], best_of: int = 3) -> float:
    rates = []
    for _ in range(best_of):
        began = time.perf_counter()
        tokens = sum(len(response.ids) for group in generate(engine, requests) for response in group)
        rates.append(tokens / (time.perf_counter() - began))
    return max(rates)
