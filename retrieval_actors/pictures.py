"""A picture as a short vector: which colours are where."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

GRID = 8
LAYOUT_DIMENSION = GRID * GRID * 3
MID_GREY = 128


def decoded(picture: bytes, whose: str, mode: str = "RGB") -> Picture:
    """The pixels. Raises ValueError, naming `whose` picture it is, when the bytes are no whole PNG or JPEG."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(picture), formats=("PNG", "JPEG")) as opened:
            return opened.convert(mode)
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"picture of {whose} does not decode ({len(picture)} bytes): give PNG or JPEG") from error


def colour_layout(picture: bytes, whose: str) -> np.ndarray:
    """(192,) float32 unit row: mean colours on an 8x8 grid, as distances from mid-grey; zeros for a picture that is all mid-grey.

    Means over cells forgive a shift by a few pixels, noise and compression; the norm forgives contrast. Transparent pixels count as
    mid-grey, which is nothing. Raises ValueError, naming `whose` picture it is, when the bytes are no PNG or JPEG.
    """
    from PIL import Image

    pixels = decoded(picture, whose, "RGBA")
    flat = Image.alpha_composite(Image.new("RGBA", pixels.size, (MID_GREY, MID_GREY, MID_GREY, 255)), pixels).convert("RGB")
    cells = np.asarray(flat.resize((GRID, GRID), Image.Resampling.BOX), np.float32)
    layout = (cells - MID_GREY).reshape(-1)
    norm = np.linalg.norm(layout)
    return layout / norm if norm > 0 else layout
