"""Send weights to rollout workers that may die: through Ray's object store, or by one broadcast."""

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import ray
from ray.exceptions import RayError, RayTaskError

from learner.deadline import FETCH_S, DeadlineError, dead_actors, one_line, refuse_lost_sender, results
from rollout.weight_buckets import PublishedBucket, seal

ANSWER_S = 2.0  # for `incarnation`: workers are idle then, so living ones answer at once
logger = logging.getLogger(__name__)


class LostWorker(NamedTuple):
    worker: int
    node: str  # its address; empty where the worker never answered
    bucket: int  # 1, 2, ...: the bucket of weights that it was being sent; 0: it was sampling
    of: int  # buckets in all; 0: not known yet
    policy_version: int
    reason: str

    def __str__(self) -> str:
        during = f"taking bucket {self.bucket}{f' of {self.of}' if self.of else ''} of" if self.bucket else "sampling with"
        where = f"rollout worker {self.worker} on node {self.node or 'unknown'}"
        return f"{where} was lost while {during} policy version {self.policy_version}: {self.reason}"


class WeightTransfer:
    """Sends the buckets of one policy version after another through Ray's object store; a bucket that a worker holds is not sent to it again."""

    def __init__(self, handles: Callable[[], dict[int, Any]]):
        self.handles = handles
        self.version = -1
        self.buckets: list[PublishedBucket] = []
        self.calls: dict[int, dict[int, ray.ObjectRef]] = {}  # worker -> number of a bucket -> the call that sends it
        self._held: dict[int, list[int]] = {}
        self.nodes: dict[int, str] = {}

    def begin(self, version: int) -> None:
        self.version, self.buckets, self.calls = version, [], {}

    def holds(self, worker: int, number: int, bucket: PublishedBucket) -> bool:
        return self._held.get(worker, [])[number : number + 1] == [bucket.checksum]

    def took(self, workers: Iterable[int], buckets: Sequence[PublishedBucket]) -> None:
        self._held |= {worker: [bucket.checksum for bucket in buckets] for worker in workers}

    def send(self, worker: int, number: int) -> None:
        bucket = self.buckets[number]
        if not self.holds(worker, number, bucket):
            self.calls.setdefault(worker, {})[number] = self.handles()[worker].receive.remote(number, bucket.ref)

    def seal(self, worker: int) -> ray.ObjectRef:
        """Ask the worker to load all buckets, which are sent by now. Pass the answer to `check`."""
        return self.handles()[worker].use_weights.remote(self.version, self._checksums)

    def check(self, worker: int, answer: tuple[int, int]) -> None:
        """Raises RuntimeError unless the worker answered that it holds exactly these weights."""
        sent = self.version, seal(self.version, self._checksums)
        if tuple(answer) != sent:
            raise RuntimeError(f"rollout worker {worker} answered with weights {answer}, it was sent {sent}")
        self.took([worker], self.buckets)

    def forget(self, worker: int) -> None:
        self._held.pop(worker, None)
        self.calls.pop(worker, None)

    def stuck_at(self, worker: int) -> tuple[int, str]:
        """The first bucket (from 1) that the worker has not taken, and why; the last one if it has taken all. Raises what the worker raised,
        such as `CorruptWeightsError`; `LearnerLostError` when the bucket is gone with its sender."""
        for number, call in sorted(self.calls.get(worker, {}).items()):
            if not ray.wait([call], timeout=0)[0]:
                return number + 1, "no answer"
            try:
                self.nodes[worker] = ray.get(call, timeout=FETCH_S)
            except RayError as error:
                refuse_lost_sender(error, self.version)
                if isinstance(error, RayTaskError):
                    raise
                return number + 1, one_line(error)
        return len(self.buckets), ""

    @property
    def _checksums(self) -> list[int]:
        return [bucket.checksum for bucket in self.buckets]


class WeightBroadcast:
    """Sends the buckets to all workers by one broadcast (`learner.transport=collective`); `RolloutWorkers.push` then only checks what each holds.
    If it fails, the weights go through the object store, where workers do not depend on each other. All `senders` gather, the first sends."""

    def __init__(self, senders: Sequence[Any], deadline_s: float):
        self._senders, self._deadline_s = senders, deadline_s
        self._members: dict[int, str] = {}  # worker -> its incarnation, of those in the broadcast group
        self.dead: dict[int, tuple[int, str]] = {}  # worker that died in the last broadcast -> the bucket (from 1) it did not take, and why

    def send(self, transfer: WeightTransfer) -> list[PublishedBucket] | None:
        """Returns the buckets, which all workers then hold; None if it failed. Buckets that all workers hold already are not sent."""
        workers, sender = transfer.handles(), self._senders[0]
        sent: list[PublishedBucket] = []
        sending: list[Any] = []
        taking: dict[Any, tuple[int, int]] = {}
        self.dead = {}
        try:
            asked = [handle.incarnation.remote() for handle in workers.values()]
            present = dict(zip(workers, results(asked, "the rollout workers to say that they are there", ANSWER_S), strict=True))
            for worker in workers:
                if self._members.get(worker) != present[worker]:  # started since the last broadcast
                    transfer.forget(worker)
            if self._members != present:
                (address,) = self._wait([sender.address.remote()])
                members = [sender, *workers.values()]
                joined = [member.join_broadcast.remote(*address, i, len(members), self._deadline_s) for i, member in enumerate(members)]
                transfer.nodes |= zip(workers, self._wait(joined)[1:], strict=True)
                self._members = present
            packing = [rank.pack_bucket.remote(0) for rank in self._senders]
            while bucket := self._wait(packing)[0]:
                if not all(transfer.holds(worker, len(sent), bucket) for worker in workers):
                    sending.append(sender.send_bucket.remote(len(sent)))
                    for worker, handle in workers.items():
                        taking[handle.receive_broadcast.remote(len(sent), bucket)] = worker, len(sent) + 1
                sent.append(bucket)
                packing = [rank.pack_bucket.remote(len(sent)) for rank in self._senders]
            self._wait([*sending, *taking, sender.finish_sending.remote()])
            transfer.took(workers, sent)
            return sent
        except (RayError, DeadlineError) as error:
            sender.leave_broadcast.remote()  # workers that still wait for it fail at once
            self._members = {}
            for call, reason in sorted(dead_actors(list(taking)).items()):
                worker, number = list(taking.values())[call]
                self.dead.setdefault(worker, (number, reason))
            why = one_line(error) if isinstance(error, RayError) else str(error)
            logger.warning(f"the broadcast of weights failed at bucket {len(sent)}: {why}; they go through the object store")
            return None

    def _wait(self, calls: list[Any]) -> list[Any]:
        return results(calls, "the broadcast of weights", self._deadline_s)
