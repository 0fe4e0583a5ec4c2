"""Pictures that a record names by their path."""

from __future__ import annotations

from pathlib import Path

from PIL import Image


def read_picture(folder: Path, name: str) -> bytes:
    """The bytes of `name` inside `folder`. Raises ValueError, one line, when it is outside, not there, or no PNG or JPEG that decodes."""
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise ValueError(f"image {name!r} is outside the folder of pictures {folder}")
    if not path.is_file():
        raise ValueError(f"image {name!r} does not exist in {folder}")
    try:
        with Image.open(path, formats=("PNG", "JPEG")) as picture:
            picture.draft("RGB", (64, 64))  # reads a JPEG to its end, but decodes a fraction of it
            picture.load()
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"image {name!r} does not decode ({str(error).split(' <')[0]}): expected PNG or JPEG") from None
    return path.read_bytes()
