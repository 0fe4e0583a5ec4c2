"""A checkpoint in two steps: a copy in memory, then files written in the background. Imports DeepSpeed: set its environment first."""

import copy
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from deepspeed.runtime.checkpoint_engine import TorchCheckpointEngine
from torch.utils._pytree import tree_map

from learner.ranks.checkpoint_files import FileFacts, facts_of


class Snapshot(TorchCheckpointEngine):
    """Copies what DeepSpeed would write; `write` makes the same files. Memory is reused: filling new memory takes several times as long."""

    def __init__(self) -> None:
        super().__init__()
        self._memory: list[torch.Tensor] = []
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[FileFacts] | None = None

    def begin(self) -> None:
        if self._writing is not None:
            self._writing.exception()  # waits; `written` raises it
        self._writing, self._taken, self.bytes = None, 0, 0
        self._states: dict[str, Any] = {}

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Nothing is written yet."""

    def save(self, state_dict: Any, path: str) -> None:
        self._copies: dict[tuple, torch.Tensor] = {}  # by address, which identifies a tensor only while the whole state is alive
        self._states[Path(path).as_posix()] = tree_map(self._copied, state_dict, is_leaf=lambda value: isinstance(value, torch.Size))

    def write(self, folder: Path) -> None:
        self._writing = self._pool.submit(self._write, folder)

    def written(self) -> FileFacts | None:
        """Size and checksum of each file; None while they are being written. Raises what the writing raised."""
        return self._writing.result() if self._writing is not None and self._writing.done() else None

    def _write(self, folder: Path) -> FileFacts:
        for name, state in self._states.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with path.open("wb") as file:  # given a name, torch would hold the GIL, which the learner needs, to open and close it
                    torch.save(state, file)
            except (OSError, RuntimeError) as error:  # torch's writer has its own error for a full disk
                free = shutil.disk_usage(folder).free
                raise OSError(f"{path} could not be written ({str(error).partition(chr(10))[0]}); {free:,} bytes are free") from error
        return facts_of(folder, list(self._states))

    def _copied(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return copy.deepcopy(value)
        tensor = value.detach()
        key = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if tensor.numel() and key in self._copies:  # tied weights are one tensor in the file, too
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
