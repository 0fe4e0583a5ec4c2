"""Calls to several actors at once, within one deadline; each call is answered by one of the replicas of its actor."""

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

HEDGE_SHARE = 0.1  # of the deadline: after it a second replica is asked, too (hedged requests: Dean and Barroso, The Tail at Scale, 2013)
PAUSE_S = 0.1  # before dead replicas are asked again: Ray restarts them meanwhile


@dataclass(frozen=True)
class Unanswered:
    """Stands in for an answer that did not come by the deadline. An actor may return it: another replica is asked then, too."""

    reason: str  # `silent`, the class name of Ray's last error, or what the actor said


@dataclass(frozen=True)
class Call:
    replicas: Sequence[Any]  # handles of actors with the same content
    method: str
    arguments: tuple[Any, ...]


@dataclass
class _Pending:
    first: int  # number of the replica that is asked first
    next_try: float
    tries: int = 0
    reason: str = "silent"


def call_replicas(calls: Sequence[Call], deadline_s: float) -> list[Any]:
    """The answers, in the order of the calls; `Unanswered` where none came by the deadline. Raises what a call raised in its actor.
    If a replica is dead, the next one is asked, and after the last one the first again. If a replica is slow, the next one is asked as well."""
    now = time.monotonic()
    end, hedge_s = now + deadline_s, HEDGE_SHARE * deadline_s
    pending = {number: _Pending(random.randrange(len(call.replicas)), now) for number, call in enumerate(calls)}
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
                replica = call.replicas[(waiting.first + waiting.tries) % len(call.replicas)]
                running[getattr(replica, call.method).remote(*call.arguments)] = number
                waiting.tries += 1
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
                answer = ray.get(reference, timeout=max(1.0, end - time.monotonic()))
            except RayTaskError:  # an error of the query or the program, not of a process
                raise
            except RayError as error:
                answer = Unanswered(type(error).__name__)
            if isinstance(answer, Unanswered):
                waiting = pending[number]
                waiting.reason = answer.reason
                all_tried = waiting.tries >= len(calls[number].replicas)
                waiting.next_try = min(waiting.next_try, time.monotonic() + PAUSE_S * all_tried)
            else:
                answers[number] = answer
                del pending[number]
    for reference in running:
        ray.cancel(reference)
    return [answers[number] for number in range(len(calls))]
