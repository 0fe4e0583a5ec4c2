"""A checkpoint in two steps: the state is copied while the learner stands still, and the copy is written while it learns on.

DeepSpeed is imported here, so import this only in a learner process, when its environment is set.
"""

from __future__ import annotations

import copy
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from deepspeed.runtime.checkpoint_engine import TorchCheckpointEngine

from learner.checkpoint_files import FileFacts, facts_of

PLAIN = (str, bytes, int, float, bool, type(None), torch.dtype, torch.Size, torch.device)


class Snapshot(TorchCheckpointEngine):
    """Takes the place of an engine's checkpoint engine: what DeepSpeed would write is copied, and written when `write` says where.

    What it reads are files of the same form, so `load_checkpoint` loads them bit for bit. The copies need as much memory of the host as the
    checkpoint of this rank has bytes; they are kept, as new memory takes several times as long to fill.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0
        """Of all tensors in the snapshot."""
        self._states: dict[str, Any] = {}
        self._memory: list[torch.Tensor] = []
        self._taken = 0
        self._copies: dict[tuple, torch.Tensor] = {}
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[FileFacts] | None = None

    def begin(self) -> None:
        """Forget the last snapshot, once it is written."""
        if self._writing is not None:
            self._writing.exception()  # waits; whoever asks `written` hears of it
        self._writing, self._states, self._taken, self.bytes = None, {}, 0, 0

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Nothing is written yet."""

    def save(self, state_dict: Any, path: str) -> None:
        self._copies = {}  # by address, which is one tensor's own only as long as the whole state is alive
        self._states[Path(path).as_posix()] = self._copied(state_dict)

    def write(self, folder: Path) -> None:
        """Begin to write the snapshot below this folder, under the paths that it was taken with."""
        self._writing = self._pool.submit(self._write, folder)

    def written(self) -> FileFacts | None:
        """Size and checksum of each file; None while it is being written. Raises what the writing raised: OSError for a full disk."""
        if self._writing is None or not self._writing.done():
            return None
        return self._writing.result()

    def _write(self, folder: Path) -> FileFacts:
        for name, state in self._states.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with path.open("wb") as file:  # by its name, torch would open and close it while holding the lock that the learner needs
                    torch.save(state, file)
            except (OSError, RuntimeError) as error:  # torch's writer tells a full disk in its own words
                free = shutil.disk_usage(folder).free
                raise OSError(f"{path} could not be written ({str(error).partition(chr(10))[0]}); {free:,} bytes are free") from error
        return facts_of(folder, list(self._states))

    def _copied(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return self._tensor(value)
        if isinstance(value, PLAIN):
            return value
        if isinstance(value, dict):
            copied = copy.copy(value)  # its class, and the attributes that a state dict has
            copied.update((key, self._copied(item)) for key, item in value.items())
            return copied
        if type(value) in (list, tuple):
            return type(value)(self._copied(item) for item in value)
        return copy.deepcopy(value)

    def _tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.detach()
        key = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if tensor.numel() and key in self._copies:  # tied weights are one tensor, in the file, too
            return self._copies[key]
        kept = self._memory[self._taken] if self._taken < len(self._memory) else None
        if kept is None or kept.shape != tensor.shape or kept.dtype != tensor.dtype:
            kept = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
            self._memory[self._taken : self._taken + 1] = [kept]
        kept.copy_(tensor)
        self._copies[key] = kept
        self._taken += 1
        self.bytes += kept.numel() * kept.element_size()
        return kept
