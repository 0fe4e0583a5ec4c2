"""Buckets of weights by one broadcast of the communication library: NCCL between GPUs, gloo between CPUs.

The group is one of its own: torch's default process group belongs to the learners, and a receiver that dies must not take it along.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist


class BroadcastGroup:
    """Rank 0 sends, all others receive. All members have to be made at the same time, and to make the same calls.

    Every call raises RuntimeError when a member is gone, or does not take part in time.
    """

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
        self._device = device
        self._sending: Any = None
        self._memory: dict[int, torch.Tensor] = {}

    def send(self, flat: torch.Tensor) -> None:
        """Begin to send these bytes, when the last ones have arrived; they must not change before the next call has returned."""
        self.finish()
        self._sending = self._begin(flat)

    def finish(self) -> None:
        """Wait until what was sent last has arrived."""
        if self._sending is not None:
            self._sending.wait(self._timeout)
            self._sending = None

    def receive(self, number: int, size: int) -> torch.Tensor:
        """(size,) uint8: the next bytes, in memory that is kept for the bucket of this number."""
        if number not in self._memory or len(self._memory[number]) != size:
            self._memory[number] = torch.empty(size, dtype=torch.uint8, device=self._device)
        self._begin(self._memory[number]).wait(self._timeout)
        return self._memory[number]

    def _begin(self, flat: torch.Tensor) -> Any:
        options = dist.BroadcastOptions()
        options.rootRank, options.rootTensor, options.timeout = 0, 0, self._timeout
        return self._group.broadcast([flat], options)
