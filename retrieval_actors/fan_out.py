"""Calls to several actors at once, each answered by one of its replicas, within one deadline."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

HEDGE_SHARE = 0.1
"""Share of the deadline after which a replica that is silent is not waited for alone: the next one is asked as well (Dean and Barroso, The
Tail at Scale, 2013)."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 1.0
"""Between two tries on an actor that is being restarted: doubled each time."""


@dataclass(frozen=True)
class Unanswered:
    """In the place of an answer that did not come by the deadline."""

    reason: str
    """What was last heard: `silent`, or the name of Ray's error."""


@dataclass(frozen=True)
class Call:
    replicas: Sequence[Any]
    """Handles of actors that hold the same."""
    method: str
    arguments: tuple[Any, ...]


@dataclass
class _Pending:
    """A call that has no answer yet."""

    turn: int
    """Which replica is asked next, modulo their number."""
    tries: int = 0
    next_try: float = 0.0
    """When to ask again; a time that has come means now."""
    reason: str = "silent"


def fan_out(calls: Sequence[Call], deadline_s: float) -> list[Any]:
    """The answers, in the order of the calls.

    A replica that is gone is asked again, while Ray restarts it, or another one is; of a silent one the next replica is asked beside it.
    Where there is no answer by the deadline, there is an `Unanswered`.
    """
    now = time.monotonic()
    end, hedge_s = now + deadline_s, HEDGE_SHARE * deadline_s
    pending = {number: _Pending(random.randrange(len(call.replicas)), next_try=now) for number, call in enumerate(calls)}
    running: dict[Any, int] = {}
    answers: dict[int, Any] = {}
    while pending:
        now = time.monotonic()
        if now >= end:
            answers |= {number: Unanswered(waiting.reason) for number, waiting in pending.items()}
            break
        for number, waiting in pending.items():
            if now >= waiting.next_try:
                call = calls[number]
                replica = call.replicas[waiting.turn % len(call.replicas)]
                running[getattr(replica, call.method).remote(*call.arguments)] = number
                waiting.turn, waiting.tries = waiting.turn + 1, waiting.tries + 1
                waiting.next_try = now + hedge_s if len(call.replicas) > 1 else end
        wake = min(end, *(waiting.next_try for waiting in pending.values()))
        if not running:
            time.sleep(max(0.0, wake - now))
            continue
        ready, _ = ray.wait(list(running), num_returns=1, timeout=max(0.0, wake - now))
        for reference in ready:
            number = running.pop(reference)
            if number not in pending:  # another replica was quicker
                continue
            try:
                answers[number] = ray.get(reference, timeout=max(1.0, end - time.monotonic()))
                del pending[number]
            except RayTaskError:  # a fault of the query or of the program, not of a process
                raise
            except RayError as error:
                waiting = pending[number]
                waiting.reason = type(error).__name__
                rounds = waiting.tries // len(calls[number].replicas)
                pause = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** (rounds - 1)) if rounds else 0.0
                waiting.next_try = min(waiting.next_try, time.monotonic() + pause)
    for reference in running:  # nobody waits for these any more
        ray.cancel(reference)
    return [answers[number] for number in range(len(calls))]
