"""Pictures that come in (checked before they are decoded) and go out (as small as a page needs them)."""

from __future__ import annotations

import base64
import binascii
import io
import re

from PIL import Image as PillowImage
from PIL import UnidentifiedImageError

from experiments.serving.refusals import Refusal
from rollout.records import Image

DATA_URL = re.compile(r"data:([a-z]+/[a-z0-9.+-]+);base64,(.*)", re.S | re.I)
FORMATS = {"image/png": "PNG", "image/jpeg": "JPEG", "image/jpg": "JPEG"}
LONGEST_TO_SHORTEST = 100
"""Sides of a picture: image processors refuse a thinner one."""
THUMBNAIL = 160
"""Pixels of the longer side."""


def read_picture(url: str, max_pixels: float, param: str) -> Image:
    """The picture of a data URL. Raises Refusal: 415 for another kind of picture, 413 for one with too many pixels, 422 for anything that is no
    picture at all. Only its first bytes are read before the pixels are counted."""
    match = DATA_URL.fullmatch(url)
    if not match:
        raise Refusal(422, "invalid_image_url", "images come as data URLs (data:image/png;base64,...): no address is fetched", param)
    kind = FORMATS.get(match[1].lower())
    if kind is None:
        raise Refusal(415, "unsupported_image", f"image is {match[1][:40]}; expected image/png or image/jpeg", param)
    try:
        data = base64.b64decode(match[2], validate=True)
        with PillowImage.open(io.BytesIO(data), formats=("PNG", "JPEG")) as picture:
            width, height = picture.size
            if width * height > max_pixels:
                raise Refusal(413, "image_too_large", f"image has {width} x {height} pixels, more than {max_pixels:.0f}", param)
            if max(width, height) > LONGEST_TO_SHORTEST * min(width, height):
                raise Refusal(422, "invalid_image", f"image is {width} x {height} pixels: too thin to be looked at", param)
            picture.load()
            picture.convert("RGB")
    except PillowImage.DecompressionBombError:
        raise Refusal(413, "image_too_large", f"image has far more than {max_pixels:.0f} pixels", param) from None
    except (binascii.Error, UnidentifiedImageError, OSError, SyntaxError, ValueError):
        raise Refusal(422, "invalid_image", "image does not decode: expected the base64 of a PNG or JPEG", param) from None
    return Image.of(data)


def data_url(data: bytes) -> str:
    kind = "png" if data.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def thumbnail(data: bytes) -> str | None:
    """A data URL of the picture, made small; None when it does not decode: the page then shows the text alone."""
    small = small_picture(data)
    return None if small is None else data_url(small)


def small_picture(data: bytes) -> bytes | None:
    """The picture itself where it is small, else a JPEG of at most `THUMBNAIL` pixels a side; None when it does not decode."""
    try:
        with PillowImage.open(io.BytesIO(data), formats=("PNG", "JPEG")) as picture:
            if max(picture.size) <= THUMBNAIL and len(data) < 32 * 1024:
                return data
            picture.thumbnail((THUMBNAIL, THUMBNAIL))
            small = io.BytesIO()
            picture.convert("RGB").save(small, "JPEG", quality=80)
    except (UnidentifiedImageError, OSError, ValueError, PillowImage.DecompressionBombError):
        return None
    return small.getvalue()
