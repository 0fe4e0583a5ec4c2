"""The weights of one policy version as one flat buffer: what the learner sends and rollout workers receive.

One buffer instead of hundreds of tensors travels through Ray's object store in one piece and is read there without a copy.
"""

from __future__ import annotations

import math
import warnings
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

ALIGNMENT = 64
"""Every tensor begins at a multiple of this many bytes, so that it can be viewed in place whatever its dtype."""


class CorruptWeightsError(ValueError):
    """The bytes are not the ones that were packed."""


@dataclass(frozen=True)
class TensorSlot:
    """Where one tensor lies in the buffer."""

    name: str
    dtype: str
    """As torch names it: `float32`, `bfloat16`, ..."""
    shape: tuple[int, ...]
    offset: int
    """In bytes."""


@dataclass(frozen=True)
class WeightBuffer:
    data: np.ndarray
    """(bytes,) uint8."""
    manifest: tuple[TensorSlot, ...]
    version: int
    """The policy version that these weights are."""
    checksum: int
    """CRC-32 over version, manifest and data: 2.4 GiB/s on one core, where blake2b reaches 0.6."""


@dataclass(frozen=True)
class PublishedWeights:
    """A `WeightBuffer` that lies in Ray's object store, and what a worker has to answer when it has taken it over."""

    buffer: Any
    """Reference to it."""
    version: int
    checksum: int


def pack(named_tensors: Iterable[tuple[str, torch.Tensor]], version: int, into: np.ndarray | None = None) -> WeightBuffer:
    """Copy tensors into one buffer. `into`: the data of an earlier buffer of the same model, overwritten instead of allocating a new one.

    Tensors may come one at a time (ZeRO-3 gathers them so): each is copied before the next is taken, unless the buffer has to be sized first.
    """
    if into is None:
        named_tensors = list(named_tensors)
        into = np.zeros(sum(_padded(tensor.numel() * tensor.element_size()) for _, tensor in named_tensors), np.uint8)
    manifest, offset = [], 0
    flat = torch.from_numpy(into)
    for name, tensor in named_tensors:
        size = tensor.numel() * tensor.element_size()
        if offset + size > len(into):
            raise ValueError(f"weights: `into` holds {len(into)} bytes, too few for {name}; pass the buffer of a model of the same size")
        flat[offset : offset + size].view(tensor.dtype).copy_(tensor.detach().reshape(-1))
        manifest.append(TensorSlot(name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), offset))
        offset += _padded(size)
    return WeightBuffer(into, tuple(manifest), version, _checksum(into, tuple(manifest), version))


def unpack(buffer: WeightBuffer) -> dict[str, torch.Tensor]:
    """The tensors as views of the buffer: nothing is copied, so treat them as read-only.

    Raises `CorruptWeightsError` when the checksum does not fit.
    """
    found = _checksum(buffer.data, buffer.manifest, buffer.version)
    if found != buffer.checksum:
        raise CorruptWeightsError(
            f"weights of policy version {buffer.version}: checksum {found:08x}, expected {buffer.checksum:08x}; send them again"
        )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        flat = torch.from_numpy(buffer.data)
    tensors = {}
    for slot in buffer.manifest:
        dtype = getattr(torch, slot.dtype)
        tensors[slot.name] = flat[slot.offset : slot.offset + math.prod(slot.shape) * dtype.itemsize].view(dtype).view(slot.shape)
    return tensors


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


def _checksum(data: np.ndarray, manifest: tuple[TensorSlot, ...], version: int) -> int:
    return zlib.crc32(data.data, zlib.crc32(repr((version, manifest)).encode()))
