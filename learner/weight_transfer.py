"""Weights on their way to workers that may die: who was sent which bucket, who holds it, where somebody was lost."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from learner.deadline import FETCH_S
from learner.lost_learner import line, refuse_lost_sender
from rollout.weights import PublishedBucket, seal


@dataclass(frozen=True)
class Lost:
    """A rollout worker that died, or did not answer in time."""

    worker: int
    node: str
    """Its address; empty where the worker was lost before it had answered at all."""
    bucket: int
    """1, 2, ...: the bucket of weights that it was being sent; 0: it was sampling."""
    of: int
    """Buckets in all; 0: not known yet."""
    policy_version: int
    reason: str

    def __str__(self) -> str:
        all_of_them = f" of {self.of}" if self.of else ""
        during = f"taking bucket {self.bucket}{all_of_them} of" if self.bucket else "sampling with"
        where = f"rollout worker {self.worker} on node {self.node or 'unknown'}"
        return f"{where} was lost while {during} policy version {self.policy_version}: {self.reason}"


class WeightTransfer:
    """The buckets of one policy version after another, sent through Ray's object store; a bucket that a worker holds is not sent to it again."""

    def __init__(self, handles: Callable[[], Mapping[int, Any]]):
        self._handles = handles
        self.version = -1
        self.buckets: list[PublishedBucket] = []
        """Those of this version that are there so far."""
        self.calls: dict[int, dict[int, ray.ObjectRef]] = {}
        """Worker -> number of a bucket -> the call that hands it over."""
        self._held: dict[int, list[int]] = {}
        """Worker -> checksums of the buckets that it holds."""
        self.nodes: dict[int, str] = {}
        """Worker -> address of its node, as far as known."""

    def begin(self, version: int) -> None:
        self.version, self.buckets, self.calls = version, [], {}

    def holds(self, worker: int, number: int, bucket: PublishedBucket) -> bool:
        """Whether the worker has it from an earlier version."""
        held = self._held.get(worker, [])
        return number < len(held) and held[number] == bucket.checksum

    def broadcast(self, workers: Iterable[int], buckets: Sequence[PublishedBucket]) -> None:
        """These workers have these buckets, without `send`."""
        self._held.update({worker: [bucket.checksum for bucket in buckets] for worker in workers})

    def send(self, worker: int, number: int) -> None:
        """Hand over a bucket, unless the worker holds it from an earlier version."""
        bucket = self.buckets[number]
        if not self.holds(worker, number, bucket):
            self.calls.setdefault(worker, {})[number] = self._handles()[worker].receive.remote(number, bucket.ref)

    def seal(self, worker: int) -> ray.ObjectRef:
        """All buckets are sent: ask the worker to take them over. `check` reads the answer."""
        return self._handles()[worker].use_weights.remote(self.version, self._checksums)

    def check(self, worker: int, answer: tuple[int, int]) -> None:
        """Raises RuntimeError unless the worker says that it holds exactly these weights."""
        sent = self.version, seal(self.version, self._checksums)
        if tuple(answer) != sent:
            raise RuntimeError(f"rollout worker {worker} answered with weights {answer}, it was sent {sent}")
        self._held[worker] = self._checksums

    def forget(self, worker: int) -> None:
        """It is to be sent everything again."""
        self._held.pop(worker, None)
        self.calls.pop(worker, None)

    def stuck_at(self, worker: int) -> tuple[int, str]:
        """Number (from 1) of the first bucket that the worker has not taken, and why; of the last one, where it has taken all.

        Raises what the worker raised, such as `CorruptWeightsError`; `LearnerLostError` when there is nothing to take any more.
        """
        for number, call in sorted(self.calls.get(worker, {}).items()):
            if not ray.wait([call], timeout=0)[0]:
                return number + 1, "no answer"
            try:
                self.nodes[worker] = ray.get(call, timeout=FETCH_S)
            except RayError as error:
                refuse_lost_sender(error, self.version)
                if isinstance(error, RayTaskError):
                    raise
                return number + 1, line(error)
        return len(self.buckets), ""

    def node(self, worker: int) -> str:
        return self.nodes.get(worker, "")

    def lost(self, worker: int, bucket: int, reason: str) -> Lost:
        return Lost(worker, self.node(worker), bucket, len(self.buckets), self.version, reason)

    @property
    def _checksums(self) -> list[int]:
        return [bucket.checksum for bucket in self.buckets]
