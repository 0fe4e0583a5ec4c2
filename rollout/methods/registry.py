"""The methods that a policy is compared with: same engine, knowledge bases and prompts, another way through the question.

A method is a coroutine like `rollout.episode.episode`, in a small file of its own, and a line in `METHODS`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial

from rollout.episode import Episode, Log, Surroundings, episode
from rollout.methods.direct import direct
from rollout.methods.everything import everything, single
from rollout.methods.interleaved import interleaved
from rollout.methods.never_stop import never_stop
from rollout.records import Question

Way = Callable[[Question, Surroundings, random.Random, Log], Episode]


@dataclass(frozen=True)
class Method:
    label: str
    """How a table calls it."""
    isolates: str
    """What the difference to the policy's own routing shows."""
    way: Callable[..., Episode] = episode
    per_kb: bool = False
    """There is one for each knowledge base: NAME:KB."""


METHODS = {
    "policy": Method("the router", "the policy decides what to ask, where, and when to stop"),
    "random": Method("random routing", "what naming the knowledge base is worth: the policy asks and stops, chance routes"),
    "oracle": Method(
        "oracle routing",
        "how much better routes, and stops that come too late, could still make it: both are given from the gold steps; what the policy asks, and "
        "stops that come too early, stay its own",
    ),
    "never_stop": Method(
        "router without stopping",
        "what stopping is worth: every episode makes all of its searches, the further ones with the question itself",
        never_stop,
    ),
    "ircot": Method("interleaved, all knowledge bases", "what routing saves: every query goes to every knowledge base", interleaved),
    "all": Method("all knowledge bases, one answer turn", "what asking step by step is worth: one search of everything", everything),
    "single": Method("one knowledge base, one answer turn", "plain RAG: what a single knowledge base can answer", single, per_kb=True),
    "direct": Method("no retrieval", "what the policy knows by itself", direct),
}
"""Name, as `rollout.routing` and `evaluation.methods` say it -> method."""


def is_method(name: str) -> bool:
    method, colon, kb = name.partition(":")
    return method in METHODS and METHODS[method].per_kb == bool(colon) and bool(colon) == bool(kb)


def label_of(name: str) -> str:
    method, _, kb = name.partition(":")
    return f"{METHODS[method].label}: {kb}" if kb else METHODS[method].label


def expected_names() -> str:
    """For messages."""
    return ", ".join(f"{name}:KB" if method.per_kb else name for name, method in METHODS.items())


def find_method(name: str, kbs: Collection[str]) -> Way:
    """Raises ValueError for an unknown method, and for a knowledge base that is not there."""
    if not is_method(name):
        raise ValueError(f"rollout.routing is {name!r}; expected one of {expected_names()}")
    method, _, kb = name.partition(":")
    if kb and kb not in kbs:
        raise ValueError(f"rollout.routing is {name!r}; known knowledge bases are {', '.join(kbs)}")
    return partial(METHODS[method].way, kb) if kb else METHODS[method].way
