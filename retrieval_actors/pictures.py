"""Decodes pictures in one way: questions, passages, pages and requests get the same pixels from the same bytes."""

import base64
import io
import os
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = ("PNG", "JPEG")
MOST_PIXELS = 80e6  # a small file can decode to far more, and fill the memory. Pillow's own bound is higher, and only warns.
LONGEST_TO_SHORTEST = 200  # most that Qwen-VL accepts
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # pictures over MOST_PIXELS are refused
GRID = 8
LAYOUT_DIMENSION = GRID * GRID * 3
MID_GREY = 128
THUMBNAIL = 160  # pixels of the longer side


class PictureError(ValueError):
    """The message is one line that begins with the picture's owner."""


class TooManyPixelsError(PictureError):
    """A picture that is too large to decode."""


def decode(data: bytes, owner: str = "picture", most_pixels: float = MOST_PIXELS, draft: int = 0) -> Image.Image:
    """The pixels as RGB: upright by EXIF, transparency on white, 16 bits cut to 8, the first frame of an animated PNG.
    `draft`: side in pixels that is enough, which is faster. Raises PictureError unless it is a complete PNG or JPEG of a legal size."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
            width, height = opened.size
            if width * height > most_pixels:
                raise TooManyPixelsError(f"{owner} has {width} x {height} pixels; expected at most {most_pixels / 1e6:g} million")
            if max(width, height) > LONGEST_TO_SHORTEST * min(width, height):
                raise PictureError(f"{owner} is {width} x {height} pixels: too thin, expected sides of at most {LONGEST_TO_SHORTEST} to 1")
            if draft:
                opened.draft(None, (draft, draft))
            return _on_white(_upright(opened), depth=data[24])  # the bit depth, in a PNG
    except PictureError:
        raise
    except Image.DecompressionBombError:
        raise TooManyPixelsError(f"{owner} has far too many pixels; expected at most {most_pixels / 1e6:g} million") from None
    except UnidentifiedImageError:
        begins = f"it begins with {data[:8]!r}" if data else "it is empty"
        raise PictureError(f"{owner} does not decode ({begins}); expected a complete PNG or JPEG") from None
    except Exception as error:  # damaged bytes make Pillow raise anything
        detail = " ".join(str(error).split()) or type(error).__name__
        raise PictureError(f"{owner} does not decode ({len(data):,} bytes: {detail}); expected a complete PNG or JPEG") from None


def read_picture(folder: Path, name: str) -> bytes:
    """The picture at `name`, a path that must lie inside `folder`; links may lead out, as in snapshots of the hub. Raises PictureError."""
    owner = f"image {name!r}"
    path = Path(os.path.abspath(folder / name))
    if not any(path.is_relative_to(inside(folder)) for inside in (os.path.abspath, os.path.realpath)):
        raise PictureError(f"{owner} is outside the folder of pictures {folder}")
    try:
        if not path.is_file():
            raise PictureError(f"{owner} does not exist in {folder}")
        data = path.read_bytes()
    except OSError as error:
        raise PictureError(f"{owner} cannot be read: {error}") from None
    decode(data, owner, draft=64)
    return data


def colour_layout(picture: bytes, owner: str) -> np.ndarray:
    """(192,) float32 unit row: mean colours on an 8x8 grid, minus mid-grey; zeros if all is mid-grey. Raises PictureError."""
    cells = np.asarray(decode(picture, f"picture of {owner}").resize((GRID, GRID), Image.Resampling.BOX), np.float32)
    layout = (cells - MID_GREY).reshape(-1)
    norm = np.linalg.norm(layout)
    return layout / norm if norm > 0 else layout


def _upright(picture: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(picture)
    except Exception:  # damaged EXIF in an otherwise good picture
        return picture


def _on_white(picture: Image.Image, depth: int) -> Image.Image:
    """`depth`: bits per channel in a PNG. Pillow scales pixels to 8 bits, but not the colour that means transparent."""
    clear = picture.info.get("transparency")
    if picture.mode.startswith("I"):  # 16 bit grey, which Pillow's own conversion clips at 255
        values = np.asarray(picture)
        return Image.fromarray((np.where(values == clear, 0xFFFF, values) >> 8).astype(np.uint8)).convert("RGB")
    if picture.mode in ("1", "L") and clear is not None:
        picture.info["transparency"] = clear * 255 // (2**depth - 1)
    elif picture.mode == "RGB" and clear is not None and depth == 16:
        picture.info["transparency"] = tuple(number >> 8 for number in clear)
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    seen = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen).convert("RGB")


def small_picture(data: bytes) -> bytes | None:
    """The picture itself where it is small, else a JPEG of at most THUMBNAIL pixels a side; None if it does not decode."""
    try:
        picture = decode(data, draft=2 * THUMBNAIL)
    except PictureError:
        return None
    if max(picture.size) <= THUMBNAIL and len(data) < 32 * 1024:
        return data
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    small = io.BytesIO()
    picture.save(small, "JPEG", quality=80)
    return small.getvalue()


def data_url(data: bytes) -> str:
    kind = "png" if data.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
