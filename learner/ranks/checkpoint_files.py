"""The files of a checkpoint: checks of disk space and of damage, and the weights in them."""

import contextlib
import hashlib
import io
import shutil
from collections.abc import Iterable
from pathlib import Path

import torch
from xxhash import xxh3_64

FileFacts = dict[str, list]  # path below the checkpoint -> [bytes, checksum]
SCORER_PREFIX = "model."  # before the names of the policy's parameters
SPARE_BYTES = 1 << 20  # for everything that is not a tensor


class CorruptCheckpointError(ValueError):
    """A file of a checkpoint is not as it was written."""


class NoRoomError(OSError):
    """The disk has too little room; nothing was written."""


def facts_of(folder: Path, names: Iterable[str]) -> FileFacts:
    return {name: [(folder / name).stat().st_size, _checksum(folder / name)] for name in names}


def refuse_damaged(folder: Path, facts: FileFacts, read: bool) -> None:
    """Raises `CorruptCheckpointError` for a file that is missing, has another size or (with `read`) other bytes."""
    for name, (size, checksum) in facts.items():
        file, wrong = folder / name, ""
        if not file.is_file():
            wrong = "missing"
        elif file.stat().st_size != size:
            wrong = f"corrupt: {file.stat().st_size} bytes, {size} were written"
        elif read and _checksum(file) != checksum:
            wrong = "corrupt: its checksum is not that of what was written"
        if wrong:
            raise CorruptCheckpointError(f"{file} is {wrong}; choose another checkpoint")


def refuse_without_room(folder: Path, needed: int) -> None:
    """Raises `NoRoomError` with the folder (which need not exist), the bytes needed and those free."""
    place = next(part for part in (folder, *folder.parents) if part.is_dir())
    needed, free = needed + SPARE_BYTES, shutil.disk_usage(place).free
    if free < needed:
        raise NoRoomError(f"{folder} needs {needed:,} bytes, {free:,} are free; make room or write elsewhere")


def _checksum(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, xxh3_64).hexdigest()


def allow_checkpoint_types() -> None:
    """Let torch load the classes that DeepSpeed puts into a checkpoint; it refuses all others."""
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    torch.serialization.add_safe_globals([LossScaler, ZeroStageEnum, fragment_address])


def consolidated_weights(folder: Path, tag: str) -> dict[str, torch.Tensor]:
    """Parameter name in the policy's model -> value, in float32 with ZeRO 1 to 3. Every rank needs memory for the whole model."""
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    if list((folder / tag).glob("*_optim_states.pt")):
        with contextlib.redirect_stdout(io.StringIO()):
            found = dict(get_fp32_state_dict_from_zero_checkpoint(str(folder), tag))
    else:
        found = torch.load(folder / tag / "mp_rank_00_model_states.pt", map_location="cpu", weights_only=True)["module"]
    return {name.removeprefix(SCORER_PREFIX): tensor for name, tensor in found.items()}
