"""The base class of sources: their data files, and the passages of each record. To add one: docs/05_knowledge_bases.md."""

import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from retrieval_actors.pictures import decode, read_picture
from retrieval_actors.records import Passage
from retrieval_actors.sources.data_files import DataError, Located, data_files, ending_of, is_hidden, records

Item = TypeVar("Item")
FILES_IN_A_PART = 64


@dataclass(frozen=True)
class Source:
    """The fields of a subclass are its settings, `key=value` on the command line."""

    name: ClassVar[str]  # as in `source=NAME`
    form: ClassVar[str]  # what is expected, for messages: one phrase
    modality: ClassVar[str] = "text"  # default of the knowledge base: `text`, `text_image` or `table`

    @classmethod
    def recognises(cls, path: Path, entry: dict[str, Any]) -> bool:
        """Whether `source=auto` picks this source. `entry`: the first record, empty if it is no object."""
        raise NotImplementedError

    def parts(self, path: Path) -> list[list[Path]]:
        """The files, in groups that may be read in parallel; by default each file of a folder. Raises DataError if there are none."""
        if not path.is_dir():
            return [[path]]
        if not (files := data_files(path)):
            raise DataError(f"{path}: no data file in this folder; source={self.name} expects {self.form}")
        return [[file] for file in files]

    def read(self, file: Path) -> Iterator[Located]:
        """(place, record) of each record of a file; a ValueError stands in for a broken one. By default those of a data file."""
        return records(file)

    def left_out(self, path: Path) -> list[tuple[str, str]]:
        """(path, reason) of each file in a folder that is not read; by default nothing is known about them."""
        return []

    def passages(self, record: Any, file: Path, default_id: str) -> Iterable[Passage]:
        """The passages of one record, none to leave it out. `default_id`: for a record without an id. Raises ValueError or OSError, one line."""
        raise NotImplementedError


@dataclass(frozen=True)
class FolderFiles(Source):
    """SOURCE is one file, or a folder in which the files of some endings are read, those of all folders below it too."""

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


def text_of(entry: dict[str, Any], key: str, default: str | None = None) -> str:
    """The text under `key`; `null` counts as absent. Raises ValueError for another type, and if it is absent without a default."""
    value = entry.get(key)
    if value is None:
        if default is None:
            raise ValueError(f"expected {key!r}, found the keys {sorted(entry)}")
        return default
    if not isinstance(value, str):
        raise ValueError(f"{key!r} must be a string, found {type(value).__name__}")
    return value


def id_of(entry: dict[str, Any], key: str) -> str:
    """The id under `key`, a text or a whole number: 7, 7.0 and "7" are the same. Raises ValueError for anything else."""
    value = entry.get(key)
    if isinstance(value, float) and value.is_integer():  # an integer column with missing values, from pandas
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise ValueError(f"{key!r} must be a text or a whole number, found {value!r}")
    return str(value)


def picture_of(entry: dict[str, Any], key: str, folder: Path) -> bytes | None:
    """The picture under `key`: a path inside `folder`, or Hugging Face's `{"bytes", "path"}`. Raises ValueError, also if it does not decode."""
    value = entry.get(key)
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        decode(value, f"the picture in {key!r}")
        return value
    name = text_of({key: value}, key, "")
    return read_picture(folder, name) if name else None


def word_windows(text: str, words: int, stride: int) -> Iterator[str]:
    """Windows of `words` words, one every `stride` words; the last may be shorter. Raises ValueError for a stride that leaves words out."""
    if not 0 < stride <= words:
        raise ValueError(f"windows of {words} words, {stride} apart: expected 0 < stride <= words")
    split = text.split()
    for start in range(0, len(split), stride):
        yield " ".join(split[start : start + words])
        if start + words >= len(split):
            return


def in_chunks(items: Iterable[Item], size_of: Callable[[Item], int], most_size: float, most: float = math.inf) -> Iterator[list[Item]]:
    """Consecutive items in lists of at most `most` items and at most `most_size` in all; a larger item is a list of its own."""
    chunk: list[Item] = []
    chunk_size = 0
    for item in items:
        size = size_of(item)
        if chunk and (len(chunk) == most or chunk_size + size > most_size):
            yield chunk
            chunk, chunk_size = [], 0
        chunk.append(item)
        chunk_size += size
    if chunk:
        yield chunk
