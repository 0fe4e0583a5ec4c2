"""A folder of pictures and a JSON Lines file that says what is on them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retrieval_actors.records import Passage
from retrieval_actors.sources.picture_files import read_picture
from retrieval_actors.sources.source import JsonLines, Place, SourceError, id_of, text_of

CAPTION_FILES = ("captions.jsonl", "metadata.jsonl")
PICTURE_KEYS = ("file", "file_name")


@dataclass(frozen=True)
class CaptionedImages(JsonLines):
    """`file` (or `file_name`) is the path of a PNG or JPEG, and the id of the passage where there is no `id`."""

    name = "captions"
    form = "an object with 'file' (a path) and 'caption' on each line, and optionally 'entity' and 'id'"
    modality = "text_image"

    images: str = ""
    """Folder that the paths are relative to, as seen from that of the captions; empty: that one itself."""

    @classmethod
    def recognises(cls, path: Path, entry: dict[str, Any]) -> bool:
        if path.is_dir():
            return any((path / name).is_file() for name in CAPTION_FILES)
        return any(key in entry for key in PICTURE_KEYS) and ("caption" in entry or "text" in entry)

    def parts(self, path: Path) -> list[list[Path]]:
        """A folder is read through the captions in it."""
        if not path.is_dir():
            return [[path]]
        found = [path / name for name in CAPTION_FILES if (path / name).is_file()]
        if not found:
            raise SourceError(f"{path}: neither {' nor '.join(CAPTION_FILES)} in this folder; expected {self.form}")
        return [found[:1]]

    def of_entry(self, entry: dict[str, Any], place: Place) -> Iterable[Passage]:
        key = next((key for key in PICTURE_KEYS if key in entry), PICTURE_KEYS[0])
        file = text_of(entry, key)
        caption = text_of(entry, "caption" if "caption" in entry else "text")
        entity = text_of(entry, "entity", "")
        yield Passage(
            id=id_of(entry, "id") if "id" in entry else file,
            title="" if entity in caption else entity,
            text=caption,
            image=read_picture(place.file.parent / self.images, file),
        )
