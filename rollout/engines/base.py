"""What a generation engine takes and gives: prompt token ids in, response token ids and their log-probabilities out.

An engine is driven by whoever holds it: requests are submitted at any time, and every call of `collect` goes on with all of them and hands out
the responses that have ended since. `generate` is that in one call, for those who have nothing else to do meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch

from rollout.engines.stats import EngineStats
from rollout.records import Image

FinishReason = Literal["stop", "length", "abort"]


@dataclass(frozen=True)
class Sampling:
    temperature: float = 1.0
    """0: greedy."""
    top_p: float = 1.0
    top_k: int = 0
    """0: no limit."""
    max_new_tokens: int = 64


@dataclass(frozen=True)
class Request:
    """One prompt and how many independent responses it wants."""

    prompt_ids: np.ndarray
    """(tokens,) int32, with the picture's placeholder tokens where `image` is given."""
    image: Image | None
    siblings: int
    seed: int
    """Sibling j draws from the random stream (seed, j) alone: its response does not depend on what else is in the batch."""
    sampling: Sampling = Sampling()


@dataclass(frozen=True)
class Response:
    ids: np.ndarray
    """(tokens,) int32, with the end token where one was sampled."""
    logprobs: np.ndarray
    """(tokens,) float32, nats, at temperature 1 over the whole vocabulary: what a learner computes for the same tokens."""
    sampled_logprobs: np.ndarray
    """(tokens,) float32, nats, of the distribution that was drawn from: after temperature, top-k, top-p and banned tokens; 0 when greedy."""
    finish_reason: FinishReason
    policy_version: int
    """Of the weights that sampled it, all of it."""


@dataclass(frozen=True)
class Finished:
    """One response, as soon as it has ended; its siblings may still be running."""

    ticket: int
    """What `submit` returned."""
    sibling: int
    response: Response


class Engine(Protocol):
    policy_version: int
    """Version of the weights that are loaded; -1 before the first update."""

    @property
    def stats(self) -> EngineStats:
        """What it has done so far; to be read at any time."""
        ...

    def submit(self, request: Request) -> int:
        """Take a request in; returns its ticket. Raises `ValueError` for a prompt that can never fit."""
        ...

    def collect(self, wait_s: float = 0.0) -> list[Finished]:
        """Go on with what was submitted, and hand out the responses that have ended since the last call, maybe none.

        An engine of this process decodes a little in every call; one that runs elsewhere waits up to `wait_s` seconds for something to end.
        """
        ...

    @property
    def unfinished(self) -> int:
        """Responses that were asked for and have not been handed out."""
        ...

    def abort(self, tickets: Iterable[int]) -> None:
        """Give up these requests; siblings that are not finished are handed out with what they have, as `abort`."""
        ...

    def pause(self) -> None:
        """Nothing is decoded until `resume`; nothing is lost. Submitting goes on."""
        ...

    def resume(self) -> None: ...

    def update_weights(self, version: int, tensors: Mapping[str, torch.Tensor]) -> None:
        """Replace all parameters. Responses that are under way begin again from their prompts, with the same random stream: no key, value or token
        of the old weights is left. Raises `ValueError` when a name or a shape does not fit; the old weights are then still whole."""
        ...


def generate(engine: Engine, requests: Sequence[Request]) -> list[list[Response]]:
    """Responses of each request, in the order of the requests. To be used when nothing else is under way."""
    places = {engine.submit(request): i for i, request in enumerate(requests)}
    found: list[dict[int, Response]] = [{} for _ in requests]
    while engine.unfinished:
        for finished in engine.collect(wait_s=1.0):
            found[places[finished.ticket]][finished.sibling] = finished.response
    return [[siblings[j] for j in sorted(siblings)] for siblings in found]
