"""The files of a checkpoint: is there room for them, and are they still what was written?"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from xxhash import xxh3_64

FileFacts = dict[str, list]
"""Path below the checkpoint -> [bytes, checksum]."""
PIECE = 1 << 20
SPARE_BYTES = 1 << 20
"""For what a checkpoint holds beside tensors."""


class CorruptCheckpointError(ValueError):
    """A file of a checkpoint is not as it was written."""


class NoRoomError(OSError):
    """The disk has too little room; nothing was written."""


def facts_of(folder: Path, names: Iterable[str]) -> FileFacts:
    """Size and XXH3-64 of each of these files, to be compared by `refuse_damaged`."""
    return {name: [(folder / name).stat().st_size, _checksum(folder / name)] for name in names}


def refuse_damaged(folder: Path, facts: FileFacts, read: bool) -> None:
    """Raises `CorruptCheckpointError`, naming the file, for one that is missing, has another size or (where it is `read`) other bytes."""
    for name, (size, checksum) in facts.items():
        file = folder / name
        if not file.is_file():
            raise CorruptCheckpointError(f"{file} is missing; choose another checkpoint")
        if file.stat().st_size != size:
            raise CorruptCheckpointError(f"{file} is corrupt: {file.stat().st_size} bytes, {size} were written; choose another checkpoint")
        if read and _checksum(file) != checksum:
            raise CorruptCheckpointError(f"{file} is corrupt: its checksum is not that of what was written; choose another checkpoint")


def refuse_without_room(folder: Path, needed: int) -> None:
    """Raises `NoRoomError` with the folder (which need not be there yet), the bytes that are needed and those that are free."""
    place = next(part for part in (folder, *folder.parents) if part.is_dir())
    needed, free = needed + SPARE_BYTES, shutil.disk_usage(place).free
    if free < needed:
        raise NoRoomError(f"{folder} needs {needed:,} bytes, {free:,} are free; make room or write elsewhere")


def _checksum(file: Path) -> str:
    digest = xxh3_64()
    with file.open("rb") as stream:
        while piece := stream.read(PIECE):
            digest.update(piece)
    return digest.hexdigest()
