"""Weights to all rollout workers by one broadcast, where `learner.transport=collective` asks for it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from learner.deadline import DeadlineError, results
from learner.lost_learner import line
from rollout.weights import PublishedBucket

END_S = 10.0
"""All members of a group that is broken hear of it within this time."""
logger = logging.getLogger(__name__)


class WeightBroadcast:
    """Fills the inboxes of all workers. What it sent is then pushed as usual: nothing is left to send, and each worker says what it holds.

    A broadcast reaches all or is of no use: when it fails, the weights take the way through the object store, where each worker is on its own.
    """

    def __init__(self, ranks: Sequence[Any], deadline_s: float):
        self._ranks, self._deadline_s = ranks, deadline_s
        self._members: dict[int, Any] = {}
        self.nodes: dict[int, str] = {}
        """Worker -> address of its node."""
        self.dead: dict[int, tuple[int, str]] = {}
        """Workers that died in the last broadcast -> the bucket (from 1) that they did not take, and why."""

    def send(self, workers: Mapping[int, Any], holds: Callable[[int, PublishedBucket], bool]) -> list[PublishedBucket] | None:
        """The buckets, which all workers have now; None when that failed. `holds`: whether they all have the bucket of this number already."""
        sent: list[PublishedBucket] = []
        sending: list[Any] = []
        taking: dict[Any, tuple[int, int]] = {}
        self.dead = {}
        try:
            if self._members != dict(workers):
                self._meet(dict(workers))
            packing = [rank.pack_bucket.remote(0) for rank in self._ranks]
            while bucket := self._wait(packing)[0]:
                if not holds(len(sent), bucket):
                    sending.append(self._ranks[0].send_bucket.remote(len(sent)))
                    for worker, handle in workers.items():
                        taking[handle.receive_broadcast.remote(len(sent), bucket)] = worker, len(sent) + 1
                sent.append(bucket)
                packing = [rank.pack_bucket.remote(len(sent)) for rank in self._ranks]
            self._wait([*sending, *taking, self._ranks[0].finish_sending.remote()])
        except (RayError, DeadlineError) as error:
            self._ranks[0].leave_broadcast.remote()  # whoever still waits for it hears that it is gone
            self._members = {}
            self._find_dead(taking)
            why = line(error) if isinstance(error, RayError) else str(error)
            logger.warning(f"the broadcast of weights failed at bucket {len(sent)}: {why}; they go through the object store")
            return None
        return sent

    def _meet(self, workers: dict[int, Any]) -> None:
        (address,) = self._wait([self._ranks[0].address.remote()])
        members = [self._ranks[0], *workers.values()]
        answers = self._wait(
            [member.join_broadcast.remote(*address, i, len(members), self._deadline_s) for i, member in enumerate(members)]
        )
        self._members, self.nodes = workers, dict(zip(workers, answers[1:], strict=True))

    def _find_dead(self, taking: dict[Any, tuple[int, int]]) -> None:
        """Those that failed without an answer of their own; the others only lost the sender."""
        ended, _ = ray.wait(list(taking), num_returns=len(taking), timeout=END_S) if taking else ([], [])
        for call in ended:
            worker, bucket = taking[call]
            try:
                ray.get(call, timeout=END_S)
            except RayTaskError:
                pass
            except RayError as error:
                if worker not in self.dead or bucket < self.dead[worker][0]:
                    self.dead[worker] = bucket, line(error)

    def _wait(self, calls: list[Any]) -> list[Any]:
        return results(calls, "the broadcast of weights", self._deadline_s)
