"""Sources that read the files of some endings in a folder and in all folders below it, and say which other files they left out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from retrieval_actors.sources.data_files import DataError, ending_of, is_hidden
from retrieval_actors.sources.source import Source

FILES_IN_A_PART = 64


@dataclass(frozen=True)
class FolderFiles(Source):
    """SOURCE is one file or a folder."""

    endings: ClassVar[tuple[str, ...]]

    def parts(self, path: Path) -> list[list[Path]]:
        """The files in order. Raises DataError if there are none."""
        if not path.is_dir():
            return [[path]]
        if not (files := sort_out(path, self.endings)[0]):
            raise DataError(f"{path}: no file {', '.join(self.endings)} in this folder; expected {self.form}")
        return [files[start : start + FILES_IN_A_PART] for start in range(0, len(files), FILES_IN_A_PART)]

    def left_out(self, path: Path) -> list[tuple[str, str]]:
        return sort_out(path, self.endings)[1] if path.is_dir() else []


def sort_out(folder: Path, endings: Sequence[str]) -> tuple[list[Path], list[tuple[str, str]]]:
    """The files with one of the endings, in order, and (path, reason) of all else; a hidden folder counts once. Raises DataError."""

    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename}: cannot be read ({error.strerror})")

    files, left_out = [], []
    for place, folders, names in os.walk(folder, onerror=refuse):
        unread = [name for name in folders if is_hidden(name) or Path(place, name).is_symlink()]
        folders[:] = [name for name in folders if name not in unread]
        for path in (Path(place, name) for name in (*unread, *names)):
            if is_hidden(path.name):
                reason = "hidden"
            elif not path.is_file():
                reason = "a link to a folder" if path.is_dir() else "no regular file"
            elif ending_of(path) not in endings:
                reason = f"not one of {', '.join(endings)}"
            else:
                files.append(path)
                continue
            left_out.append((str(path.relative_to(folder)), reason))
    return sorted(files), sorted(left_out)
