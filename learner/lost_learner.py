"""A learner process that is gone, or does not answer: which one, and what the others waited for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import ObjectLostError, RayError, RayTaskError

from learner.deadline import DeadlineError, results

GRACE_S = 10.0
"""After the first rank has failed, how long the others are listened to: a rank whose peer died fails with an error of its own, often first."""


class LearnerLostError(RuntimeError):
    """The group has lost ranks, and is of no use until `LearnerGroup.restart` and `load`."""

    def __init__(self, ranks: Sequence[int], doing: str, reason: str):
        super().__init__(ranks, doing, reason)  # all of them: Ray's `Trainable` copies what is raised
        self.ranks, self.doing, self.reason = tuple(ranks), doing, reason

    def __str__(self) -> str:
        who = "learner rank" if len(self.ranks) == 1 else "learner ranks"
        return f"{who} {', '.join(map(str, self.ranks))} lost during {self.doing}: {self.reason}"


def answers(calls: Sequence[ray.ObjectRef], doing: str, deadline_s: float) -> list[Any]:
    """The answers of ranks 0, 1, ... to one call each.

    Raises `LearnerLostError` when a rank died or did not answer in time; what a rank raised, when all are alive.
    """
    try:
        return results(calls, doing, deadline_s)
    except DeadlineError as error:
        silent = [rank for rank, call in enumerate(calls) if not ray.wait([call], timeout=0)[0]]
        raise LearnerLostError(silent, doing, f"no answer in {deadline_s:g} s") from error
    except RayError as error:
        dead = _dead(calls)
        if not dead:
            raise
        raise LearnerLostError(sorted(dead), doing, line(dead[min(dead)])) from error


def refuse_lost_sender(error: RayError, version: int) -> None:
    """Raises `LearnerLostError` where a worker could not read its weights because the learner that had put them there is gone."""
    if isinstance(error, ObjectLostError) or isinstance(getattr(error, "cause", None), ObjectLostError):
        raise LearnerLostError([0], f"the broadcast of policy version {version}", line(error)) from error


def _dead(calls: Sequence[ray.ObjectRef]) -> dict[int, RayError]:
    found = {}
    for call in ray.wait(list(calls), num_returns=len(calls), timeout=GRACE_S)[0]:
        try:
            ray.get(call, timeout=GRACE_S)
        except RayTaskError:
            pass
        except RayError as error:
            found[list(calls).index(call)] = error
    return found


def line(error: RayError) -> str:
    """What happened, without Ray's advice on where to look."""
    cause = getattr(error, "cause", None) or error
    return str(cause).strip().partition("\n")[0] or type(cause).__name__
