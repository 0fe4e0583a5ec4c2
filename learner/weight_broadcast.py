"""Weights to all rollout workers by one broadcast, where `learner.transport=collective` asks for it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ray.exceptions import RayError

from learner.deadline import DeadlineError, results
from rollout.weights import PublishedBucket

logger = logging.getLogger(__name__)


class WeightBroadcast:
    """Fills the inboxes of all workers. What it sent is then pushed as usual: nothing is left to send, and each worker says what it holds.

    A broadcast reaches all or is of no use: when it fails, the weights take the way through the object store, where each worker is on its own.
    """

    def __init__(self, ranks: Sequence[Any], deadline_s: float):
        self._ranks, self._deadline_s = ranks, deadline_s
        self._members: list[Any] = []

    def send(self, workers: Mapping[int, Any], holds: Callable[[int, PublishedBucket], bool]) -> list[PublishedBucket] | None:
        """The buckets, which all workers have now; None when that failed. `holds`: whether they all have the bucket of this number already."""
        sent: list[PublishedBucket] = []
        try:
            if self._members != list(workers.values()):
                self._meet(list(workers.values()))
            arriving: list[Any] = []
            packing = [rank.pack_bucket.remote(0) for rank in self._ranks]
            while bucket := self._wait(packing)[0]:
                if not holds(len(sent), bucket):
                    arriving += [self._ranks[0].send_bucket.remote(len(sent))]
                    arriving += [worker.receive_broadcast.remote(len(sent), bucket) for worker in self._members]
                sent.append(bucket)
                packing = [rank.pack_bucket.remote(len(sent)) for rank in self._ranks]
            self._wait([*arriving, self._ranks[0].finish_sending.remote()])
        except (RayError, DeadlineError) as error:
            cause = str(getattr(error, "cause", None) or error).partition("\n")[0]
            logger.warning(f"the broadcast of weights failed at bucket {len(sent)}: {cause}; they go through the object store")
            self._members = []
            return None
        return sent

    def _meet(self, workers: list[Any]) -> None:
        (address,) = self._wait([self._ranks[0].address.remote()])
        members = [self._ranks[0], *workers]
        self._wait([member.join_broadcast.remote(*address, i, len(members), self._deadline_s) for i, member in enumerate(members)])
        self._members = workers

    def _wait(self, calls: list[Any]) -> list[Any]:
        return results(calls, "the broadcast of weights", self._deadline_s)
