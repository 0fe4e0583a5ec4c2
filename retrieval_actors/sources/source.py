"""What a source of passages is: files, the records in them, and the passages of a record.

A new source is one small class: see "Adding a source" in docs/knowledge_bases.md.
"""

from __future__ import annotations

import bz2
import gzip
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, ClassVar, cast

from retrieval_actors.records import Passage


class SourceError(ValueError):
    """A record that is not what the source says it is; the message is one line that begins with FILE:LINE, or with the path."""


@dataclass(frozen=True)
class Place:
    """Where a record stands; written as FILE:LINE."""

    file: Path
    line: int
    """From 1: of its first line, where a record has several."""
    root: Path
    """What the user named: the file itself, or a folder above it."""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True)
class Source:
    """A form that passages come in. The fields of a subclass are its settings, given as `key=value` on the command line."""

    name: ClassVar[str]
    """How it is asked for: `source=NAME`."""
    form: ClassVar[str]
    """What is expected, for messages: one phrase."""
    modality: ClassVar[str] = "text"
    """Of the knowledge base, unless the user says another: `text`, `text_image` or `table`."""

    @classmethod
    def recognises(cls, path: Path, entry: dict[str, Any]) -> bool:
        """Whether `source=auto` should take this one. `entry`: the JSON object in the first line, empty where that is none."""
        raise NotImplementedError

    def parts(self, path: Path) -> list[list[Path]]:
        """The files to read, in order, in groups that may be read side by side. Raises SourceError where there are none."""
        return [[path]]

    def records(self, file: Path) -> Iterator[tuple[int, bytes]]:
        """(line number from 1, bytes) of each record of a file; here a record is a line."""
        with open_file(file) as lines:
            yield from enumerate(lines, 1)

    def passages(self, record: bytes, place: Place) -> Iterable[Passage]:
        """The passages of one record, none if it is left out on purpose. Raises ValueError or OSError, one line, for a broken one."""
        raise NotImplementedError


class JsonLines(Source):
    """One JSON object a line."""

    def passages(self, record: bytes, place: Place) -> Iterable[Passage]:
        try:
            entry = json.loads(record)
        except json.JSONDecodeError as error:
            raise ValueError(f"not JSON ({error.msg} at column {error.colno}); expected {self.form}") from None
        except UnicodeDecodeError as error:
            raise ValueError(f"not UTF-8 (byte {error.start}); expected {self.form}") from None
        if not isinstance(entry, dict):
            raise ValueError(f"expected a JSON object, found {type(entry).__name__}")
        return self.of_entry(entry, place)

    def of_entry(self, entry: dict[str, Any], place: Place) -> Iterable[Passage]:
        """The passages of one object. Raises ValueError or OSError, one line, for a broken one."""
        raise NotImplementedError


def open_file(file: Path) -> IO[bytes]:
    """The bytes of a file, unpacked where its name ends in .gz or .bz2."""
    if file.suffix == ".gz":
        return cast("IO[bytes]", gzip.open(file, "rb"))
    return bz2.open(file, "rb") if file.suffix == ".bz2" else file.open("rb")


def text_of(entry: dict[str, Any], key: str, default: str | None = None) -> str:
    """The text under `key`; `null` counts as absent. Raises ValueError where there is none and no default, or something else."""
    value = entry.get(key)
    if value is None:
        if default is None:
            raise ValueError(f"expected {key!r}, found the keys {sorted(entry)}")
        return default
    if not isinstance(value, str):
        raise ValueError(f"{key!r} must be a string, found {type(value).__name__}")
    return value


def id_of(entry: dict[str, Any], key: str) -> str:
    """The id under `key`, a text or an integer. Raises ValueError for anything else."""
    value = entry.get(key)
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise ValueError(f"{key!r} must be a text or a whole number, found {value!r}")
    return str(value)
