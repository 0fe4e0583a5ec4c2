"""The interface of a generation engine: prompt token ids in, response token ids and their log-probs out. Requests can be submitted at any time;
every call of `collect` advances all of them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from rollout.config import RolloutConfig
from rollout.nan_check import refuse_logprobs
from rollout.records import AllowedTokens, FinishReason, Image, Turn, TurnKind

if TYPE_CHECKING:
    import torch  # see rollout/nan_check.py

    from rollout.policies import Policy


class EngineDiedError(RuntimeError):
    """The process of the engine has ended, or hangs. Only a new engine helps."""


@contextmanager
def ended_with_its_engine() -> Iterator[None]:
    """Ends this process, an actor, when that of its engine has ended: Ray then starts another one, which is sent the work again."""
    try:
        yield
    except EngineDiedError as error:
        print(error, file=sys.stderr, flush=True)
        os._exit(1)


@dataclass(frozen=True)
class Sampling:
    temperature: float = 1.0  # 0: greedy
    top_p: float = 1.0
    top_k: int = 0  # 0: no limit
    max_new_tokens: int = 64

    @classmethod
    def of(cls, config: RolloutConfig) -> Sampling:
        return cls(config.temperature, config.top_p, config.top_k, config.max_new_tokens)


@dataclass(frozen=True)
class Request:
    """One prompt, and the number of independent responses (siblings) wanted."""

    prompt_ids: np.ndarray  # (tokens,) int32
    image: Image | None
    siblings: int
    seed: int  # sibling j draws from the random stream (seed, j) alone: its response does not depend on what else is in the batch
    sampling: Sampling = Sampling()

    def check_context(self, context: int) -> None:
        """Raises `ValueError` when prompt and response are longer than the model's context, or no response is asked for."""
        prompt, room = len(self.prompt_ids), self.sampling.max_new_tokens
        if self.siblings < 1 or room < 1:
            raise ValueError(f"a request for {self.siblings} responses of up to {room} tokens; expected at least one of each")
        if prompt + room > context:
            too_long = f"a prompt of {prompt} tokens and a response of up to {room} do not fit the policy's context of {context}"
            raise ValueError(f"{too_long}; lower rollout.passages, rollout.max_passage_chars or rollout.max_new_tokens")


@dataclass(frozen=True)
class Response:
    """A finished sibling of the request with this ticket; the others may still be running."""

    ticket: int
    sibling: int
    ids: np.ndarray  # (tokens,) int32, with the end token where one was sampled
    logprobs: np.ndarray
    """(tokens,) float32, nats: at `temperature`, over the `allowed` tokens; over all tokens at temperature 1 without limits, and if greedy."""
    finish_reason: FinishReason
    policy_version: int
    temperature: float = 1.0
    allowed: AllowedTokens | None = None  # None: all
    earlier: tuple[tuple[int, int], ...] = ()  # as in `Turn`

    def __post_init__(self) -> None:
        refuse_logprobs(self.logprobs, self.policy_version)

    def turn(self, kind: TurnKind, policy: Policy) -> Turn:
        text = policy.decode(self.ids)
        sampled = self.ids, self.logprobs, self.finish_reason, self.policy_version
        return Turn(kind, *sampled, text, self.temperature, self.allowed, earlier=self.earlier)


@dataclass
class EngineStats:
    """Totals since the engine was made; slots are summed over decode steps."""

    sampled_tokens: int = 0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    slot_steps_used: int = 0
    slot_steps_available: int = 0


class Engine(Protocol):
    policy: Policy
    policy_version: int  # of the weights that are loaded; -1 before the first update
    stats: EngineStats

    def submit(self, request: Request) -> int:
        """Returns the ticket of the request. Raises `ValueError` for a prompt that can never fit."""

    def collect(self, wait_s: float = 0.0) -> list[Response]:
        """Run some decode steps, and return the finished responses. Waits up to `wait_s` seconds for an engine in another process."""

    @property
    def unfinished(self) -> int:
        """Number of responses that were asked for and not returned yet."""

    def abort(self, tickets: Iterable[int]) -> None:
        """Drop these requests. Also works after an exception."""

    def update_weights(self, version: int, tensors: Mapping[str, torch.Tensor]) -> None:
        """Replace all parameters. Unfinished responses start again from their prompts, with the same random stream, or go on
        (`rollout.partial`). Raises `ValueError`, and keeps the old weights, when a name or a shape does not fit."""


def generate(engine: Engine, requests: Sequence[Request]) -> list[list[Response]]:
    """The responses to each request, in order. The engine must have no other requests. On an exception, all requests are dropped."""
    tickets: list[int] = []
    found: dict[tuple[int, int], Response] = {}
    try:
        for request in requests:
            tickets.append(engine.submit(request))
        while engine.unfinished:
            found |= {(response.ticket, response.sibling): response for response in engine.collect(wait_s=1.0)}
    except BaseException:
        engine.abort(tickets)
        raise
    return [[found[ticket, j] for j in range(request.siblings)] for ticket, request in zip(tickets, requests, strict=True)]
