"""Waiting for Ray, never for ever."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import GetTimeoutError

FETCH_S = 5.0
"""An answer that is there may be fetched for so long, even where the deadline has come."""


class DeadlineError(RuntimeError):
    """Something that was waited for did not happen in time; the message says what."""


def results(refs: Sequence[ray.ObjectRef], what: str, deadline_s: float) -> list[Any]:
    """The values of `refs`, in their order.

    The first one that fails raises at once: the others may be waiting for it. Raises `DeadlineError` after `deadline_s` seconds.
    """
    end = time.monotonic() + deadline_s
    left = list(refs)
    while left:
        ready, left = ray.wait(left, num_returns=1, timeout=max(0.0, end - time.monotonic()))
        if not ready:
            raise DeadlineError(f"waited {deadline_s:g} s for {what}: {len(left)} of {len(refs)} are missing")
        _get(ready, what, end, deadline_s)
    return _get(list(refs), what, end, deadline_s)


def _get(refs: list[ray.ObjectRef], what: str, end: float, deadline_s: float) -> list[Any]:
    """Of calls that are answered: only an answer whose node is lost meanwhile takes time."""
    try:
        return ray.get(refs, timeout=max(FETCH_S, end - time.monotonic()))
    except GetTimeoutError:
        raise DeadlineError(f"waited {deadline_s:g} s for {what}: what was answered could not be fetched") from None
