"""How a learner rank sends its weights, bucket by bucket: into Ray's object store or by broadcast."""

from collections.abc import Iterator

import ray
import torch

from rollout.weight_buckets import BroadcastGroup, Bucket, Packer, PublishedBucket

IN_FLIGHT = 2  # buckets at a time: one is packed while the other is sent


class WeightSender:
    """Base class of an actor that sends weights: implement `gathered`, and call `prepare_sending` first."""

    rank: int
    device: torch.device

    def prepare_sending(self, bucket_bytes: int, pack_on: str) -> None:
        self.packer = Packer(bucket_bytes, IN_FLIGHT, pack_on)
        self._outgoing: Iterator[Bucket] = iter(())
        self._published: list[PublishedBucket] = []
        self._ready: dict[int, Bucket] = {}
        self._sending = -1  # number of the bucket that is being broadcast; -1: none
        self._broadcast: BroadcastGroup | None = None

    def gathered(self) -> Iterator[tuple[str, torch.Tensor]]:
        """(name, complete value), one at a time."""
        raise NotImplementedError

    def publish_bucket(self, number: int) -> PublishedBucket | None:
        """Bucket 0, 1, ... of the weights; None after the last. All senders gather, rank 0 publishes; an unchanged bucket is not put again."""
        bucket = self._next_bucket(number)
        if bucket and [known.checksum for known in self._published[number : number + 1]] != [bucket.checksum]:
            published = PublishedBucket(ray.put(bucket), bucket.manifest, bucket.checksum, len(bucket.data))
            self._published[number : number + 1] = [published]
        return self._published[number] if bucket else None

    def join_broadcast(self, host: str, port: int, rank: int, size: int, deadline_s: float) -> None:
        self._broadcast = BroadcastGroup(host, port, rank, size, deadline_s, self.device)
        self._sending = -1

    def pack_bucket(self, number: int) -> PublishedBucket | None:
        """As `publish_bucket`, but the bucket is kept for `send_bucket`."""
        if self._sending >= 0 and self._sending % IN_FLIGHT == number % IN_FLIGHT:
            self.finish_sending()  # the bucket that is being sent has the memory that is filled next
        bucket = self._next_bucket(number)
        if bucket is None:
            return None
        self._ready[number % IN_FLIGHT] = bucket
        return PublishedBucket(None, bucket.manifest, bucket.checksum, len(bucket.data))

    def send_bucket(self, number: int) -> None:
        """Begin to broadcast the bucket that was packed. Raises RuntimeError when a receiver is gone or late."""
        assert self._broadcast is not None, "join_broadcast comes first"
        self._sending = number
        self._broadcast.send(torch.as_tensor(self._ready[number % IN_FLIGHT].data))

    def finish_sending(self) -> None:
        self._sending = -1
        if self._broadcast is not None:
            self._broadcast.finish()

    def leave_broadcast(self) -> None:
        """Close the connections, so that nothing waits for this sender."""
        self._sending, self._broadcast = -1, None

    def _next_bucket(self, number: int) -> Bucket | None:
        if number == 0:
            self._outgoing = self.packer.buckets(self.gathered())
        bucket = next(self._outgoing, None)
        return None if self.rank else bucket
