"""What the endpoint hands to a router replica: one question, and how it is to be answered."""

from __future__ import annotations

from dataclasses import dataclass, replace

from rollout.config import RolloutConfig
from rollout.records import Image


@dataclass(frozen=True)
class PolicyReference:
    """Which weights answer."""

    folder: str
    """In Hugging Face format, or a name on the hub; every node must be able to read it."""
    version: int
    """As every answer carries it."""


@dataclass(frozen=True)
class RouteJob:
    request_id: str
    question: str
    image: Image | None
    kbs: tuple[str, ...]
    """Knowledge bases that may be asked."""
    policy: PolicyReference
    seed: int
    """Of sampling and of the order in which passages are shown: a request that is tried again gives the same answer."""
    deadline_s: float
    """From now."""
    deadline_asked: bool = False
    """The caller set it; else it is the service's."""
    max_steps: int | None = None
    """Retrievals that may be made; None, here and below: as the rollout configuration says."""
    k: int | None = None
    """Passages that an answer turn reads."""
    temperature: float = 0.0
    """0: greedy."""
    top_p: float = 1.0
    max_tokens: int | None = None
    """Of each turn; never more than the rollout configuration allows."""
    events: bool = True
    """Hand out every step as it happens, not the end alone."""
    pictures: bool = False
    """Passages carry a small version of their picture."""

    def rollout(self, served: RolloutConfig) -> RolloutConfig:
        """The settings of this episode, from those of the service."""
        return replace(
            served,
            max_steps=served.max_steps if self.max_steps is None else self.max_steps,
            passages=served.passages if self.k is None else self.k,
            temperature=self.temperature,
            top_p=self.top_p,
            max_new_tokens=served.max_new_tokens if self.max_tokens is None else min(self.max_tokens, served.max_new_tokens),
        )
