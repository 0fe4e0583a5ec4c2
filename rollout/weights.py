"""The weights of one policy version as flat buckets: what the learner sends and rollout workers receive.

A few buckets instead of hundreds of tensors travel in one piece each, are read where they land without a copy, and while one is on its way the
next is gathered. Nothing of a policy changes before all buckets of a version are there and fit.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from xxhash import xxh3_64

ALIGNMENT = 64
"""Every tensor begins at a multiple of this many bytes, so that it can be viewed in place whatever its dtype."""
BUCKET_BYTES = 256 * 2**20
"""Large enough that a call costs nothing beside its bytes, small enough that gathering and sending overlap."""


class CorruptWeightsError(ValueError):
    """The bytes are not the ones that were packed."""


class MissingWeightsError(RuntimeError):
    """Not all buckets of the version that was asked for are here: the process began anew meanwhile, or was sent others."""


@dataclass(frozen=True)
class TensorSlot:
    """Where one tensor lies in its bucket."""

    name: str
    dtype: str
    """As torch names it: `float32`, `bfloat16`, ..."""
    shape: tuple[int, ...]
    offset: int
    """In bytes."""


@dataclass(frozen=True)
class Bucket:
    """Some tensors, side by side. It does not know its policy version: an equal bucket of a later version need not be sent again."""

    data: np.ndarray | torch.Tensor
    """(bytes,) uint8; a tensor where they are on a GPU."""
    manifest: tuple[TensorSlot, ...]
    checksum: int
    """XXH3-64 over manifest and data: 28 GB/s on one core, faster than memory is copied; CRC-32 reaches 4."""


@dataclass(frozen=True)
class WeightBuffer:
    """All weights of one policy version."""

    buckets: tuple[Bucket, ...]
    version: int

    @property
    def checksum(self) -> int:
        return seal(self.version, [bucket.checksum for bucket in self.buckets])


@dataclass(frozen=True)
class PublishedBucket:
    """A `Bucket` as others know it."""

    ref: Any
    """Reference to it in Ray's object store; None where it is broadcast instead."""
    manifest: tuple[TensorSlot, ...]
    checksum: int
    bytes: int


@dataclass(frozen=True)
class PublishedWeights:
    """A `WeightBuffer` as others know it: in Ray's object store."""

    buckets: tuple[PublishedBucket, ...]
    version: int

    @property
    def checksum(self) -> int:
        return seal(self.version, [bucket.checksum for bucket in self.buckets])


def seal(version: int, checksums: Sequence[int]) -> int:
    """One number for all buckets of a version: sender and receiver hold the same weights when it is equal."""
    return xxh3_64(repr((version, list(checksums))).encode()).intdigest()


class Packer:
    """Cuts tensors into buckets, through memory that is kept: touching new memory costs several times as much as copying."""

    def __init__(self, bucket_bytes: int = BUCKET_BYTES, in_flight: int = 1, device: str = "cpu"):
        """`in_flight`: buckets that are whole at a time: the last one, or the last two, ..."""
        self.bucket_bytes, self._device = bucket_bytes, device
        self._memory = [torch.empty(0, dtype=torch.uint8)] * in_flight

    def buckets(self, named_tensors: Iterable[tuple[str, torch.Tensor]]) -> Iterator[Bucket]:
        """In the order of the tensors; one that is larger than `bucket_bytes` has a bucket of its own.

        A bucket lies in the same memory as an earlier one: be done with that (Ray's `put` copies) before asking for the next. Tensors, too, are
        asked for one at a time, as ZeRO-3 gathers them.
        """
        slots: list[TensorSlot] = []
        end = 0
        for name, tensor in named_tensors:
            size = tensor.numel() * tensor.element_size()
            if slots and end + _padded(size) > self.bucket_bytes:
                yield self._bucket(slots, end)
                slots, end = [], 0
            if len(self._memory[0]) < end + _padded(size):
                begun, self._memory[0] = self._memory[0][:end], self._new(max(self.bucket_bytes, _padded(size)))
                self._memory[0][:end] = begun
            flat = self._memory[0]
            flat[end : end + size].view(tensor.dtype).copy_(tensor.detach().reshape(-1))
            flat[end + size : end + _padded(size)] = 0  # left over from another bucket, it would change the checksum
            slots.append(TensorSlot(name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), end))
            end += _padded(size)
        if slots:
            yield self._bucket(slots, end)

    def _new(self, size: int) -> torch.Tensor:
        if self._device == "cpu":  # numpy's zeros take up no memory before they are written to: a small model does not fill a bucket
            return torch.from_numpy(np.zeros(size, np.uint8))
        return torch.empty(size, dtype=torch.uint8, device=self._device)

    def _bucket(self, slots: Sequence[TensorSlot], end: int) -> Bucket:
        flat = self._memory[0][:end]
        self._memory = [*self._memory[1:], self._memory[0]]
        data = flat if flat.is_cuda else flat.numpy()
        return Bucket(data, tuple(slots), _checksum(data, tuple(slots)))


def pack(named_tensors: Iterable[tuple[str, torch.Tensor]], version: int, bucket_bytes: int = BUCKET_BYTES) -> WeightBuffer:
    """All of it at once, in memory of its own."""
    packed = Packer(bucket_bytes).buckets(named_tensors)
    return WeightBuffer(tuple(Bucket(np.array(bucket.data), bucket.manifest, bucket.checksum) for bucket in packed), version)


def unpack(buffer: WeightBuffer) -> dict[str, torch.Tensor]:
    """The tensors as views of the buckets: nothing is copied, so treat them as read-only.

    Raises `CorruptWeightsError` when a checksum does not fit.
    """
    for number, bucket in enumerate(buffer.buckets):
        refuse_corrupt(bucket, f"bucket {number + 1} of {len(buffer.buckets)} of policy version {buffer.version}")
    return {name: tensor for bucket in buffer.buckets for name, tensor in views(bucket).items()}


def refuse_corrupt(bucket: Bucket, what: str) -> None:
    """Raises `CorruptWeightsError`, naming `what` it is, unless the bytes are those that were packed."""
    found = _checksum(bucket.data, bucket.manifest)
    if found != bucket.checksum:
        raise CorruptWeightsError(f"weights, {what}: checksum {found:016x}, expected {bucket.checksum:016x}; send them again")


def views(bucket: Bucket) -> dict[str, torch.Tensor]:
    """The tensors of a bucket, in place."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        flat = torch.as_tensor(bucket.data)
    tensors = {}
    for slot in bucket.manifest:
        dtype = getattr(torch, slot.dtype)
        tensors[slot.name] = flat[slot.offset : slot.offset + math.prod(slot.shape) * dtype.itemsize].view(dtype).view(slot.shape)
    return tensors


class Inbox:
    """Buckets of a receiver, from the first to the last of a version. Those that did not change since the last version stay."""

    def __init__(self) -> None:
        self._buckets: dict[int, Bucket] = {}

    def take(self, number: int, bucket: Bucket) -> None:
        """Raises `CorruptWeightsError`, and keeps what was held in its place, when the bytes are not the ones that were packed."""
        refuse_corrupt(bucket, f"bucket {number + 1}")
        self._buckets[number] = bucket

    def weights(self, version: int, checksums: Sequence[int]) -> WeightBuffer:
        """Exactly these buckets. Raises `MissingWeightsError` when one of them is not here."""
        held = [self._buckets[number].checksum if number in self._buckets else None for number in range(len(checksums))]
        missing = [str(number + 1) for number, (found, wanted) in enumerate(zip(held, checksums, strict=True)) if found != wanted]
        if missing:
            raise MissingWeightsError(
                f"policy version {version}: {len(missing)} of {len(checksums)} buckets ({', '.join(missing[:5])}) are not here; send all of them"
            )
        return WeightBuffer(tuple(self._buckets[number] for number in range(len(checksums))), version)


def copy_into(model: torch.nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Overwrite all parameters of a model, in place and in its own dtype.

    Raises ValueError, and leaves the model as it was, when a name or a shape is missing on either side.
    """
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


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _checksum(data: np.ndarray | torch.Tensor, manifest: tuple[TensorSlot, ...]) -> int:
    digest = xxh3_64(repr(manifest).encode())
    digest.update(data.cpu().numpy().data if isinstance(data, torch.Tensor) else data.data)
    return digest.intdigest()
