"""Passages from a JSON Lines file: one object a line, with `text` and optionally `title`, `id`, `image`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from retrieval_actors.records import Passage


def read_passages(path: str | Path, limit: int = 0) -> Iterator[Passage]:
    """Passages in the order of the file, at most `limit` of them if it is not 0.

    `id` defaults to the number of the line from 0, and `image` is the path of a PNG or JPEG, relative
    to the file and inside its folder. Raises ValueError that begins with FILE:LINE for a line that is something else.
    """
    path = Path(path)
    with path.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines):
            if limit and number >= limit:
                return
            try:
                yield _passage(json.loads(line), number, path.parent)
            except (ValueError, OSError) as error:
                raise ValueError(f"{path}:{number + 1}: {error}") from error


def _passage(entry: object, number: int, folder: Path) -> Passage:
    if not isinstance(entry, dict):
        raise ValueError(f"expected a JSON object, found {type(entry).__name__}")
    for key in ("text", "title", "image"):
        if not isinstance(entry.get(key, ""), str):
            raise ValueError(f"{key!r} must be a string, found {type(entry[key]).__name__}")
    if not entry.get("text") and not entry.get("title"):
        raise ValueError(f"expected 'text' or 'title', found the keys {sorted(entry)}")
    return Passage(
        id=str(entry.get("id", number)),
        title=entry.get("title", ""),
        text=entry.get("text", ""),
        image=_picture(folder, entry["image"]) if entry.get("image") else None,
    )


def _picture(folder: Path, name: str) -> bytes:
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise ValueError(f"image {name!r} is outside the folder of the file")
    if not path.is_file():
        raise ValueError(f"image {name!r} does not exist")
    return path.read_bytes()
