"""What the facts of a failure mean: was it memory, does it hang, whose fault is an exception?"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import Any

from ray.exceptions import RayTaskError

from experiments.failures.advice import mend_of
from experiments.failures.failure import Failure
from experiments.failures.node_watch import LastSeen
from experiments.failures.ray_facts import Death
from learner.deadline import DeadlineError
from learner.lost_learner import LearnerLostError

MEMORY_ERRORS = ("MemoryError", "OutOfMemoryError", "out of memory", "Cannot allocate memory", "can't allocate memory")


def of_driver(before: Mapping[str, Any]) -> Failure:
    """`before`: what its file says."""
    return Failure(
        role="driver",
        phase=before["phase"],
        reason="the last driver of this run was lost without a word: killed (SIGKILL; out of memory?), or its node",
        fatal=True,
        iteration=before["iteration"],
        policy_version=before["policy_version"],
        when=before["when"],
        process=before["process"],
        node=before["node"],
        then="this one goes on with train.resume=auto, or begins anew without",
        mend=mend_of("driver", False, False),
    )


def from_inside(error: BaseException) -> bool:
    """Raised by the program of an actor that lives on."""
    return isinstance(error, RayTaskError)


def process_of(error: BaseException) -> int:
    """Id of the process in which it was raised, which Ray tells in the text only; 0: it does not."""
    found = re.search(r"\(pid=(\d+), ip=", str(error))
    return int(found[1]) if found else 0


def is_hang(error: BaseException) -> bool:
    return isinstance(error, DeadlineError) or (isinstance(error, LearnerLostError) and "no answer in" in error.reason)


def whose(error: BaseException) -> str:
    if isinstance(error, FloatingPointError):
        return "learner"
    if isinstance(error, LearnerLostError):  # of a group that was being started: its processes were never seen alive
        return f"learner rank {error.ranks[0]}" if error.ranks else "learner"
    return "rollout workers" if isinstance(error, DeadlineError) and "rollout worker" in str(error) else "program"


def said(error: BaseException) -> str:
    cause = getattr(error, "cause", None) or error
    text = str(cause).strip().partition("\n")[0]
    named = isinstance(cause, (LearnerLostError, DeadlineError, FloatingPointError))
    return text if named and text else f"{type(cause).__name__}: {text}" if text else type(cause).__name__


def memory_of(seen: LastSeen) -> str:
    if seen.memory_mb is None:
        return ""
    return f"{seen.memory_mb:,.0f} MB before its end (peak {seen.peak_mb:,.0f} MB); its node: {seen.node_memory}"


def out_of_memory(seen: LastSeen, death: Death | None) -> str:
    if death and death.kind == "NODE_OUT_OF_MEMORY":
        return "yes, Ray's memory monitor ended it because its node ran out"
    if told := next((line for line in reversed(seen.log) if any(word in line for word in MEMORY_ERRORS)), ""):
        return f"yes, its log says: {told.strip()}"
    if seen.oom_kills and seen.exit.signal in ("", "SIGKILL"):
        processes = f"{seen.oom_kills} process{'es' if seen.oom_kills > 1 else ''}"
        return f"yes, the kernel killed {processes} of its node for want of memory at that moment"
    if seen.memory_mb is None:
        return ""
    used, total = (float(part) for part in seen.node_memory.removesuffix(" GiB").split(" of "))
    if used > 0.95 * total:
        return f"possibly: {seen.node_memory} were in use"
    return f"no sign of it ({seen.node_memory} of its node in use, no kill by the kernel or by Ray's memory monitor)"


def clock_time(when: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(when))
