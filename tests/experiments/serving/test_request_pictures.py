"""Pictures of requests and of the page: the same pixels as everywhere, and refusals that say what was found."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image as PillowImage

from experiments.serving.endpoint import read_picture
from experiments.serving.schemas import Refusal
from retrieval_actors.pictures import decode, small_picture


def encoded(picture: PillowImage.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def url(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


@pytest.mark.parametrize(
    ("data", "status", "code", "said"),
    [
        (encoded(PillowImage.new("RGB", (9, 9)), "GIF"), 422, "invalid_image", "image does not decode (it begins with b'GIF8"),
        (encoded(PillowImage.new("RGB", (99, 99)), "PNG")[:80], 422, "invalid_image", "image does not decode (80 bytes: "),
        (encoded(PillowImage.new("RGB", (900, 3)), "PNG"), 422, "invalid_image", "image is 900 x 3 pixels: too thin"),
        (
            encoded(PillowImage.new("L", (2000, 1000)), "PNG"),
            413,
            "image_too_large",
            "image has 2000 x 1000 pixels; expected at most 1 million",
        ),
    ],
)
def test_a_picture_that_cannot_be_used_is_refused_with_what_was_found(data: bytes, status: int, code: str, said: str):
    with pytest.raises(Refusal) as refused:
        read_picture(url(data), 1e6)
    assert (refused.value.status, refused.value.code) == (status, code)
    assert refused.value.message.startswith(said)


def test_a_thumbnail_is_upright_and_on_white():
    exif = PillowImage.Exif()
    exif[0x0112] = 6
    sideways = PillowImage.new("RGBA", (600, 400), (0, 0, 0, 0))
    sideways.paste((255, 0, 0, 255), (0, 0, 600, 100))
    data = encoded(sideways, "PNG", exif=exif)
    assert read_picture(url(data), 1e6).data == data
    small = small_picture(data)
    assert small
    shown, seen = decode(small), decode(data).resize((107, 160))
    assert shown.size == seen.size
    assert np.abs(np.asarray(shown, int) - np.asarray(seen, int)).mean() < 4
