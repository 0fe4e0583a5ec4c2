"""What a generation engine takes and gives: prompt token ids in, response token ids and their log-probabilities out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch

from rollout.records import Image


@dataclass(frozen=True)
class Request:
    """One prompt and how many independent responses it wants."""

    prompt_ids: np.ndarray
    """(tokens,) int32, with the picture's placeholder tokens where `image` is given."""
    image: Image | None
    siblings: int
    seed: int
    """Sibling j draws from the random stream (seed, j) alone: its response does not depend on what else is in the batch."""


@dataclass(frozen=True)
class Response:
    ids: np.ndarray
    """(tokens,) int32, with the end token where one was sampled."""
    logprobs: np.ndarray
    """(tokens,) float32, nats, at temperature 1 over the whole vocabulary: what a learner computes for the same tokens."""
    finish_reason: Literal["stop", "length"]


@dataclass(frozen=True)
class Sampling:
    temperature: float = 1.0
    """0: greedy."""
    top_p: float = 1.0
    top_k: int = 0
    """0: no limit."""
    max_new_tokens: int = 64


class Engine(Protocol):
    policy_version: int
    """Version of the weights that are loaded; -1 before the first update."""
    sampled_tokens: int
    """Response tokens sampled so far."""

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[list[Response]]:
        """Responses of each request, in the order of the requests."""
        ...

    def update_weights(self, version: int, tensors: Mapping[str, torch.Tensor]) -> None:
        """Replace all parameters. Raises `ValueError` when a name or a shape does not fit; the old weights are then still whole."""
        ...
