"""Wait for Ray with a deadline, and name what was lost: a learner process, or an object."""

import time
from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, ObjectLostError, RayError, RayTaskError

FETCH_S = 5.0  # to fetch an answer that is ready, even after the deadline
GRACE_S = 10.0  # wait for the other ranks after one failed: a rank whose peer died fails too, often first


class DeadlineError(RuntimeError):
    """Something did not happen in time."""


class LearnerLostError(RuntimeError):
    """The learner group has lost ranks; `LearnerGroup.restart` and `load` bring it back."""

    def __init__(self, ranks: Sequence[int], doing: str, reason: str):
        super().__init__(ranks, doing, reason)  # all arguments: Ray's `Trainable` copies exceptions
        self.ranks, self.doing, self.reason = tuple(ranks), doing, reason

    def __str__(self) -> str:
        return f"learner rank{'s' * (len(self.ranks) > 1)} {', '.join(map(str, self.ranks))} lost during {self.doing}: {self.reason}"


class RolloutsLostError(RuntimeError):
    """Trajectories or scored turns were lost with a node before anything was learned from them."""


def results(refs: Sequence[ray.ObjectRef], what: str, deadline_s: float) -> list[Any]:
    """The values of `refs`. The first failure is raised at once: the other calls may wait for the failed one. Raises `DeadlineError`."""
    end = time.monotonic() + deadline_s
    left = list(refs)
    try:
        while left:
            ready, left = ray.wait(left, num_returns=1, timeout=max(0.0, end - time.monotonic()))
            if not ready:
                raise DeadlineError(f"waited {deadline_s:g} s for {what}: {len(left)} of {len(refs)} are missing")
            ray.get(ready, timeout=max(FETCH_S, end - time.monotonic()))
        return ray.get(list(refs), timeout=max(FETCH_S, end - time.monotonic()))
    except GetTimeoutError:  # the node of a result is gone
        raise DeadlineError(f"waited {deadline_s:g} s for {what}: what was answered could not be fetched") from None


def rank_results(calls: Sequence[ray.ObjectRef], doing: str, deadline_s: float) -> list[Any]:
    """The results of one call to each rank. Raises `LearnerLostError` if one died or did not answer in time; else what a rank raised."""
    try:
        return results(calls, doing, deadline_s)
    except DeadlineError as error:
        silent = [rank for rank, call in enumerate(calls) if not ray.wait([call], timeout=0)[0]]
        raise LearnerLostError(silent, doing, f"no answer in {deadline_s:g} s") from error
    except RayError as error:
        dead = dead_actors(calls)
        if not dead:
            raise
        raise LearnerLostError(sorted(dead), doing, dead[min(dead)]) from error


def dead_actors(calls: Sequence[ray.ObjectRef]) -> dict[int, str]:
    """Place of a call -> why its actor died, for the calls that failed because their actor is gone."""
    found, calls = {}, list(calls)
    for call in ray.wait(calls, num_returns=len(calls), timeout=GRACE_S)[0] if calls else []:
        try:
            ray.get(call, timeout=GRACE_S)
        except RayTaskError:
            pass
        except RayError as error:
            found[calls.index(call)] = one_line(error)
    return found


def objects_are_lost(error: RayError) -> bool:
    """Whether the error means that an object is lost: the result, or an argument of the call."""
    return isinstance(error, ObjectLostError) or isinstance(getattr(error, "cause", None), ObjectLostError)


def refuse_lost_sender(error: RayError, version: int) -> None:
    """Raises `LearnerLostError` where weights cannot be read because the learner that put them there is gone."""
    if objects_are_lost(error):
        raise LearnerLostError([0], f"the broadcast of policy version {version}", one_line(error)) from error


def one_line(error: RayError) -> str:
    """The error without Ray's advice on where to look."""
    cause = getattr(error, "cause", None) or error
    return str(cause).strip().partition("\n")[0] or type(cause).__name__
