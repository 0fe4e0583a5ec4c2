"""Passages as JSON Lines: one object a line, with `text` and optionally `title`, `id` (or `idx`) and `image`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retrieval_actors.records import Passage
from retrieval_actors.sources.picture_files import read_picture
from retrieval_actors.sources.source import JsonLines, Place, SourceError, id_of, text_of


@dataclass(frozen=True)
class PassageLines(JsonLines):
    name = "passages"
    form = "an object with 'text' or 'title' on each line, and optionally 'id' and 'image' (a path)"

    title_from: str = ""
    """Keys that the title is made of, with commas between them (`country,section,field`); empty: `title`."""

    @classmethod
    def recognises(cls, path: Path, entry: dict[str, Any]) -> bool:
        return "text" in entry or "title" in entry or (path.is_dir() and bool(_lines_files(path)))

    def parts(self, path: Path) -> list[list[Path]]:
        """A folder is read file by file: every *.jsonl in it, also packed ones."""
        if not path.is_dir():
            return [[path]]
        files = _lines_files(path)
        if not files:
            raise SourceError(f"{path}: no *.jsonl in this folder; source={self.name} expects {self.form}")
        return [[file] for file in files]

    def of_entry(self, entry: dict[str, Any], place: Place) -> Iterable[Passage]:
        title, text, image = self._title(entry), text_of(entry, "text", ""), text_of(entry, "image", "")
        if not title and not text:
            raise ValueError(f"expected 'text' or 'title', found the keys {sorted(entry)}")
        yield Passage(
            id=self._id(entry, place),
            title=title,
            text=text,
            image=read_picture(place.file.parent, image) if image else None,
        )

    def _title(self, entry: dict[str, Any]) -> str:
        if not self.title_from:
            return text_of(entry, "title", "")
        keys = [key.strip() for key in self.title_from.split(",")]
        if missing := [key for key in keys if key not in entry]:
            raise ValueError(f"title_from names {missing[0]!r}, found the keys {sorted(entry)}")
        return " | ".join(filter(None, (text_of(entry, key, "") for key in keys)))

    def _id(self, entry: dict[str, Any], place: Place) -> str:
        """Without one, the number of the line from 0, with the file's name in front where there are several."""
        for key in ("id", "idx"):
            if key in entry:
                return id_of(entry, key)
        number = str(place.line - 1)
        return number if place.file == place.root else f"{place.file.relative_to(place.root)}:{number}"


def _lines_files(folder: Path) -> list[Path]:
    return sorted(file for ending in ("*.jsonl", "*.jsonl.gz", "*.jsonl.bz2") for file in folder.glob(ending))
