"""What a learner rank does to send its weights: bucket by bucket, into Ray's object store or by broadcast."""

from __future__ import annotations

from collections.abc import Iterator

import ray
import torch

from rollout.broadcast import BroadcastGroup
from rollout.weights import Bucket, Packer, PublishedBucket

IN_FLIGHT = 2
"""Buckets at a time: one is packed while the other is sent."""


class WeightSender:
    """For an actor that has weights: it says what they are in `gathered`, and calls `prepare_sending` first."""

    rank: int
    device: torch.device

    def prepare_sending(self, bucket_bytes: int, pack_on: str) -> None:
        self.packer = Packer(bucket_bytes, IN_FLIGHT, pack_on)
        self._outgoing: Iterator[Bucket] = iter(())
        self._published: list[PublishedBucket] = []
        self._ready: dict[int, Bucket] = {}
        self._sending = -1
        """Number of the bucket that is being broadcast; -1: none."""

    def gathered(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Names and values, one at a time, whole."""
        raise NotImplementedError

    @property
    def gathers(self) -> bool:
        """Whether every rank has to take part."""
        return False

    def publish_bucket(self, number: int) -> PublishedBucket | None:
        """Bucket 0, 1, ... of the weights as they are at bucket 0; None after the last one. All ranks gather, rank 0 publishes."""
        bucket = self._next_bucket(number)
        if bucket is None:
            return None
        known = self._published[number] if number < len(self._published) else None
        if known is not None and known.checksum == bucket.checksum:
            return known
        published = PublishedBucket(ray.put(bucket), bucket.manifest, bucket.checksum, len(bucket.data))
        self._published[number : number + 1] = [published]
        return published

    def join_broadcast(self, host: str, port: int, rank: int, size: int, deadline_s: float) -> None:
        """Meet the rollout workers, to send them buckets without the object store."""
        self._broadcast: BroadcastGroup | None = BroadcastGroup(host, port, rank, size, deadline_s, self.device)
        self._sending = -1

    def pack_bucket(self, number: int) -> PublishedBucket | None:
        """As `publish_bucket`, for `send_bucket`."""
        if self._sending >= 0 and self._sending % IN_FLIGHT == number % IN_FLIGHT:
            self.finish_sending()  # where a bucket between them was not sent, its memory is about to be filled again
        bucket = self._next_bucket(number)
        if bucket is None:
            return None
        self._ready[number % IN_FLIGHT] = bucket
        return PublishedBucket(None, bucket.manifest, bucket.checksum, len(bucket.data))

    def send_bucket(self, number: int) -> None:
        """Begin to broadcast the bucket that was packed last. Raises RuntimeError when a receiver is gone or late."""
        assert self._broadcast is not None, "join_broadcast comes first"
        self._sending = number
        self._broadcast.send(torch.as_tensor(self._ready[number % IN_FLIGHT].data))

    def finish_sending(self) -> None:
        self._sending = -1
        if self._broadcast is not None:
            self._broadcast.finish()

    def leave_broadcast(self) -> None:
        """Close the connections: nobody waits for this sender any longer."""
        self._sending, self._broadcast = -1, None

    def _next_bucket(self, number: int) -> Bucket | None:
        """On rank 0; the others gather with it where weights are partitioned."""
        if self.rank and not self.gathers:
            return None
        if number == 0:
            self._outgoing = self.packer.buckets(self.gathered())
        bucket = next(self._outgoing, None)
        return None if self.rank else bucket
