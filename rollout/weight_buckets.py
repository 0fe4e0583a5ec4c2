"""The weights of one policy version as flat buckets, which the learner sends and rollout workers receive. A policy changes only when all buckets of
a version have arrived and fit."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from xxhash import xxh3_64

ALIGNMENT = 64  # in bytes, of every tensor, so that it can be viewed in place
BUCKET_BYTES = 256 * 2**20  # large enough to hide the cost of a call, small enough that gathering and sending overlap


class CorruptWeightsError(ValueError):
    """The bytes are not the ones that were packed."""


class MissingWeightsError(RuntimeError):
    """Some buckets of this version are missing: the process was restarted, or got those of another version."""


Manifest = tuple[tuple[str, str, tuple[int, ...], int], ...]  # of each tensor: name, torch's name of the dtype, shape, offset in bytes


@dataclass(frozen=True)
class Bucket:
    """Some tensors in one array. It has no version: an equal bucket of a later version is not sent again."""

    data: np.ndarray | torch.Tensor  # (bytes,) uint8; a tensor on a GPU
    manifest: Manifest
    checksum: int  # XXH3-64 over manifest and data: 28 GB/s on one core, CRC-32 reaches 4


@dataclass(frozen=True)
class PublishedBucket:
    """A `Bucket` in the object store (`ref`), or one that is broadcast (None)."""

    ref: Any
    manifest: Manifest
    checksum: int
    bytes: int


@dataclass(frozen=True)
class PublishedWeights:
    buckets: tuple[PublishedBucket, ...]
    version: int

    @property
    def checksum(self) -> int:
        return seal(self.version, [bucket.checksum for bucket in self.buckets])


def seal(version: int, checksums: Sequence[int]) -> int:
    """Checksum of all buckets of a version: if it is equal, sender and receiver hold the same weights."""
    return xxh3_64(repr((version, list(checksums))).encode()).intdigest()


class Packer:
    """Packs tensors into buckets in memory that is reused: touching new memory costs several times as much as copying."""

    def __init__(self, bucket_bytes: int = BUCKET_BYTES, in_flight: int = 1, device: str = "cpu"):
        """`in_flight`: how many of the last buckets stay valid."""
        self.bucket_bytes, self._device = bucket_bytes, device
        self._memory = [torch.empty(0, dtype=torch.uint8)] * in_flight

    def buckets(self, named_tensors: Iterable[tuple[str, torch.Tensor]]) -> Iterator[Bucket]:
        """In the order of the tensors; one larger than `bucket_bytes` has a bucket of its own. Tensors are read one at a time, as ZeRO-3 gathers
        them. A bucket reuses the memory of the one `in_flight` before it: copy that (as Ray's `put` does) in time."""
        slots: list[Any] = []
        end = 0
        for name, tensor in named_tensors:
            size = tensor.numel() * tensor.element_size()
            padded = -(-size // ALIGNMENT) * ALIGNMENT
            if slots and end + padded > self.bucket_bytes:
                yield self._bucket(slots, end)
                slots, end = [], 0
            if len(self._memory[0]) < end + padded:
                begun = self._memory[0][:end]
                self._memory[0] = torch.empty(max(self.bucket_bytes, padded), dtype=torch.uint8, device=self._device)
                self._memory[0][:end] = begun
            flat = self._memory[0]
            flat[end : end + size].view(tensor.dtype).copy_(tensor.detach().reshape(-1))
            flat[end + size : end + padded] = 0  # bytes of another bucket would change the checksum
            slots.append((name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), end))
            end += padded
        if slots:
            yield self._bucket(slots, end)

    def _bucket(self, slots: Sequence[Any], end: int) -> Bucket:
        flat = self._memory[0][:end]
        self._memory = [*self._memory[1:], self._memory[0]]
        data = flat if flat.is_cuda else flat.numpy()
        return Bucket(data, tuple(slots), _checksum(data, tuple(slots)))


def _checksum(data: np.ndarray | torch.Tensor, manifest: Manifest) -> int:
    digest = xxh3_64(repr(manifest).encode())
    digest.update(data.cpu().numpy().data if isinstance(data, torch.Tensor) else data.data)
    return digest.intdigest()


def refuse_corrupt(bucket: Bucket, what: str) -> None:
    """Raises `CorruptWeightsError`, naming `what`, unless the bytes are those that were packed."""
    if (found := _checksum(bucket.data, bucket.manifest)) != bucket.checksum:
        raise CorruptWeightsError(f"weights, {what}: checksum {found:016x}, expected {bucket.checksum:016x}; send them again")


def unpack_weights(buckets: Iterable[Bucket]) -> dict[str, torch.Tensor]:
    """The tensors, as read-only views of the buckets."""
    tensors = {}
    for bucket in buckets:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            flat = torch.as_tensor(bucket.data)
        for name, dtype_name, shape, offset in bucket.manifest:
            dtype = getattr(torch, dtype_name)
            tensors[name] = flat[offset : offset + math.prod(shape) * dtype.itemsize].view(dtype).view(shape)
    return tensors


class Inbox:
    """The buckets of a receiver; those that did not change since the last version stay."""

    def __init__(self) -> None:
        self._buckets: dict[int, Bucket] = {}

    def take(self, number: int, bucket: Bucket) -> None:
        """Raises `CorruptWeightsError`, and keeps the earlier bucket, when the bytes are not those that were packed."""
        refuse_corrupt(bucket, f"bucket {number + 1}")
        self._buckets[number] = bucket

    def tensors(self, version: int, checksums: Sequence[int]) -> dict[str, torch.Tensor]:
        """The tensors of exactly these buckets. Raises `MissingWeightsError` when one is missing."""
        held = {number: bucket.checksum for number, bucket in self._buckets.items()}
        missing = [str(number + 1) for number, wanted in enumerate(checksums) if held.get(number) != wanted]
        if missing:
            named = f"{len(missing)} of {len(checksums)} buckets ({', '.join(missing[:5])})"
            raise MissingWeightsError(f"policy version {version}: {named} are not here; send all of them")
        return unpack_weights(self._buckets[number] for number in range(len(checksums)))


def copy_into(model: torch.nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Overwrite all parameters in place, in the model's dtype. Raises ValueError, and changes nothing, when names or shapes differ."""
    parameters = dict(model.named_parameters())
    refuse_other_names(tensors, parameters)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])


def refuse_other_names(sent: Mapping[str, torch.Tensor], held: Mapping[str, torch.Tensor]) -> None:
    """Raises ValueError unless both sides have the same names and shapes."""
    for names, where in ((sent.keys() - held.keys(), "were sent but the model has none"), (held.keys() - sent.keys(), "were not sent")):
        if names:
            raise ValueError(f"weights: {', '.join(sorted(names)[:3])} ({len(names)} in all) {where}; load the same policy on both sides")
    for name, tensor in held.items():
        if tensor.shape != sent[name].shape:
            raise ValueError(f"weights: {name} was sent as {tuple(sent[name].shape)}, the model has {tuple(tensor.shape)}")


class BroadcastGroup:
    """Broadcasts buckets from rank 0: NCCL between GPUs, gloo between CPUs. All members make the same calls. Not torch's default group: a
    receiver that dies would break it for the learners. Raises RuntimeError when a member is gone or late."""

    def __init__(self, host: str, port: int, rank: int, size: int, deadline_s: float, device: torch.device):
        self._timeout = timedelta(seconds=deadline_s)
        store = dist.TCPStore(host, port, size, rank == 0, self._timeout, wait_for_workers=False)
        self._group: Any
        if device.type == "cuda":
            options = dist.ProcessGroupNCCL.Options()
            options._timeout = self._timeout
            self._group = dist.ProcessGroupNCCL(store, rank, size, options)
        else:
            self._group = dist.ProcessGroupGloo(store, rank, size, self._timeout)
        self._sending: Any = None
        self._device, self._memory = device, dict[int, torch.Tensor]()

    def send(self, flat: torch.Tensor) -> None:
        """Wait for the last send, then start this one; do not change `flat` before the next call of `send` or `finish` has returned."""
        self.finish()
        self._sending = self._begin(flat)

    def finish(self) -> None:
        if self._sending is not None:
            self._sending.wait(self._timeout)
            self._sending = None

    def receive(self, number: int, size: int) -> torch.Tensor:
        """(size,) uint8: the next bytes, in memory that is reused for this bucket."""
        if number not in self._memory or len(self._memory[number]) != size:
            self._memory[number] = torch.empty(size, dtype=torch.uint8, device=self._device)
        self._begin(self._memory[number]).wait(self._timeout)
        return self._memory[number]

    def _begin(self, flat: torch.Tensor) -> Any:
        options = dist.BroadcastOptions()
        options.rootRank, options.rootTensor, options.timeout = 0, 0, self._timeout
        return self._group.broadcast([flat], options)
