"""One decoder: the same bytes are the same pixels for everybody, and what cannot be used is refused in one line."""

from __future__ import annotations

import contextlib
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from retrieval_actors.pictures import PictureError, TooManyPixelsError, decode, read_picture

RAMP = np.linspace(0, 255, 64).astype(np.uint8)
UPRIGHT = np.stack([np.tile(RAMP, (16, 1)), np.full((16, 64), 200, np.uint8), np.tile(RAMP[:16, None], (1, 64))], axis=2)
"""(16, 64, 3): no two of its eight orientations look alike."""
ORIENTATION = 0x0112


def encoded(picture: Image.Image | np.ndarray, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    (Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture).save(file, kind, **options)
    return file.getvalue()


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *more: tuple[bytes, bytes]) -> bytes:
    """A PNG, chunk by chunk; Pillow does not write all of the kinds that it reads."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = [(b"IHDR", header), *more, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    written = (struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(written)


def pixels(data: bytes) -> list:
    """Of the first row; numbers where it is grey."""
    row = np.asarray(decode(data))[0].tolist()
    return [pixel[0] if len(set(pixel)) == 1 else pixel for pixel in row]


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_upright_as_its_exif_says(kind, orientation):
    stored = {
        1: UPRIGHT,
        2: UPRIGHT[:, ::-1],
        3: UPRIGHT[::-1, ::-1],
        4: UPRIGHT[::-1],
        5: UPRIGHT.transpose(1, 0, 2),
        6: np.rot90(UPRIGHT),
        7: UPRIGHT[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(UPRIGHT, -1),
    }[orientation]
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    options = {"quality": 95, "subsampling": 0} if kind == "JPEG" else {}
    found = np.asarray(decode(encoded(np.ascontiguousarray(stored), kind, exif=exif, **options)), int)
    assert found.shape == UPRIGHT.shape
    assert np.abs(found - UPRIGHT).max() <= (12 if kind == "JPEG" else 0)


DAMAGED_EXIF = {
    "cut short": b"MM\0*\0\0\xff\xff",
    "text": b"nothing at all",
    "an orientation of 99": b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x63\0\0",
}


@pytest.mark.parametrize("kind", DAMAGED_EXIF)
@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_turns_nothing(kind):
    assert np.asarray(decode(encoded(UPRIGHT, "JPEG", exif=b"Exif\0\0" + DAMAGED_EXIF[kind]))).shape == UPRIGHT.shape


def palette(*colours: int) -> tuple[bytes, bytes]:
    return b"PLTE", bytes(number for colour in colours for number in (colour,) * 3)


def wide(*numbers: int) -> bytes:
    return struct.pack(f">{len(numbers)}H", *numbers)


KINDS = {
    "16 bit grey": (png(3, 1, 16, 0, b"\0" + wide(0, 0x8000, 0xFFFF)), [0, 128, 255]),
    "16 bit grey, black is clear": (png(3, 1, 16, 0, b"\0" + wide(0, 0x8000, 0xFFFF), (b"tRNS", wide(0))), [255, 128, 255]),
    "16 bit grey and alpha": (png(2, 1, 16, 4, b"\0" + wide(0, 0, 0x4000, 0xFFFF)), [255, 64]),
    "16 bit colours, one is clear": (
        png(2, 1, 16, 2, b"\0" + wide(0x100, 0x200, 0x300, 0x400, 0x500, 0x600), (b"tRNS", wide(0x100, 0x200, 0x300))),
        [255, [4, 5, 6]],
    ),
    "16 bit colours and alpha": (png(2, 1, 16, 6, b"\0" + wide(0, 0, 0, 0, 0x100, 0x200, 0x300, 0xFFFF)), [255, [1, 2, 3]]),
    "1 bit": (png(2, 1, 1, 0, b"\0\x40"), [0, 255]),
    "1 bit, black is clear": (png(2, 1, 1, 0, b"\0\x40", (b"tRNS", wide(0))), [255, 255]),
    "2 bit grey, one is clear": (png(4, 1, 2, 0, b"\0\x1b", (b"tRNS", wide(1))), [0, 255, 170, 255]),
    "4 bit grey, one is clear": (png(2, 1, 4, 0, b"\0\x5a", (b"tRNS", wide(5))), [255, 170]),
    "8 bit grey, one is clear": (png(2, 1, 8, 0, b"\0\x05\x09", (b"tRNS", wide(5))), [255, 9]),
    "grey and alpha": (encoded(Image.fromarray(np.array([[[0, 0], [0, 255], [0, 128]]], np.uint8), "LA")), [255, 0, 127]),
    "colours and alpha": (encoded(Image.fromarray(np.array([[[0, 0, 0, 0], [9, 9, 9, 255]]], np.uint8), "RGBA")), [255, 9]),
    "8 bit colours, one is clear": (png(2, 1, 8, 2, b"\0\1\2\3\4\5\6", (b"tRNS", wide(1, 2, 3))), [255, [4, 5, 6]]),
    "palette": (png(2, 1, 1, 3, b"\0\x40", palette(9, 7)), [9, 7]),
    "palette, one is clear": (png(2, 1, 8, 3, b"\0\0\1", palette(9, 7), (b"tRNS", b"\0")), [255, 7]),
    "palette, one is half clear": (png(2, 1, 8, 3, b"\0\0\1", palette(0, 7), (b"tRNS", b"\x80")), [127, 7]),
    "animated": (encoded(Image.new("L", (2, 1), 9), save_all=True, append_images=[Image.new("L", (2, 1), 99)]), [9, 9]),
    "grey JPEG": (encoded(Image.new("L", (2, 1), 99), "JPEG"), [99, 99]),
    "CMYK, which Adobe writes inverted": (encoded(Image.new("CMYK", (2, 1), (0, 0, 0, 255)), "JPEG"), [0, 0]),
    "CMYK, without ink": (encoded(Image.new("CMYK", (2, 1), (0, 0, 0, 0)), "JPEG"), [255, 255]),
    "two pictures in one JPEG, as phones write them": (
        encoded(Image.new("RGB", (2, 1), (9, 9, 9)), "MPO", save_all=True, append_images=[Image.new("RGB", (2, 1))]),
        [9, 9],
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_png_and_jpeg_has_its_colours(kind):
    data, expected = KINDS[kind]
    assert pixels(data) == expected


def test_a_16_bit_ramp_goes_from_black_to_white():
    ramp = np.linspace(0, 65535, 200).astype(np.uint16)
    found = pixels(encoded(Image.fromarray(ramp[None])))
    assert (found[0], found[-1]) == (0, 255)
    assert np.array_equal(found, ramp >> 8)


BROKEN = {
    "nothing": (b"", "it is empty"),
    "text": (b'{"file": 1}', "it begins with"),
    "GIF": (encoded(Image.new("RGB", (9, 9)), "GIF"), "it begins with b'GIF8"),
    "animated GIF": (
        encoded(Image.new("L", (9, 9)), "GIF", save_all=True, append_images=[Image.new("L", (9, 9), 9)]),
        "it begins with b'GIF8",
    ),
    "WebP": (encoded(Image.new("RGB", (9, 9)), "WEBP"), "it begins with b'RIFF"),
    "TIFF": (encoded(Image.new("F", (9, 9)), "TIFF"), "it begins with"),
    "half a PNG": (encoded(Image.effect_noise((64, 64), 50))[:900], "truncated"),
    "half a JPEG": (encoded(Image.effect_noise((64, 64), 50), "JPEG")[:900], "truncated"),
    "a PNG's first bytes": (encoded(UPRIGHT)[:20], "does not decode"),
    "a PNG of no pixels": (png(0, 0, 8, 0, b"\0"), "does not decode"),
    "text that unpacks to 100 MB": (
        png(1, 1, 8, 0, b"\0\0", (b"zTXt", b"a\0\0" + zlib.compress(bytes(100 << 20)))),
        "Decompressed data too large",
    ),
    "900 x 3": (encoded(Image.new("RGB", (900, 3))), "900 x 3 pixels: too thin, expected sides of at most 200 to 1"),
    "3 x 900": (encoded(Image.new("RGB", (3, 900))), "3 x 900 pixels: too thin"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_cannot_be_used_is_one_line_that_says_whose_it_is(kind):
    data, said = BROKEN[kind]
    with pytest.raises(PictureError, match=f"^mine .*{said}") as refused:
        decode(data, "mine")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("side", "said"), [(9_000, "9000 x 9000 pixels; expected at most 80 million"), (60_000, "far too many pixels")])
def test_pixels_are_counted_before_any_is_decoded(side, said):
    with pytest.raises(TooManyPixelsError, match=f"^mine has {said}"):
        decode(png(side, side, 1, 0, b"\0"), "mine")  # it has no pixels: to decode it would fail with other words
    with pytest.raises(TooManyPixelsError, match=r"has 64 x 16 pixels; expected at most 0\.001 million"):
        decode(encoded(UPRIGHT), most_pixels=1000)


@given(st.data())
def test_damaged_bytes_are_a_picture_or_a_picture_error(data):
    whole = bytearray(data.draw(st.sampled_from([*(good for good, _ in KINDS.values()), encoded(UPRIGHT, "JPEG")])))
    for place, value in data.draw(st.dictionaries(st.integers(0, len(whole) - 1), st.integers(0, 255), max_size=5)).items():
        whole[place] = value
    with contextlib.suppress(PictureError):
        assert decode(bytes(whole)).mode == "RGB"


def test_a_draft_is_the_same_picture_smaller():
    large = Image.fromarray(UPRIGHT).resize((2048, 512))
    found = decode(encoded(large, "JPEG"), draft=64)
    assert found.size == (256, 64)
    assert np.abs(np.asarray(found, int) - np.asarray(large.resize((256, 64)), int)).mean() < 3


def test_links_are_followed_wherever_they_lead(tmp_path: Path):
    """A snapshot of Hugging Face's hub: names that link to blobs outside of its folder."""
    snapshot = tmp_path / "snapshots/abc"
    (snapshot / "more").mkdir(parents=True)
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs/0a1b").write_bytes(encoded(UPRIGHT))
    (snapshot / "a.png").symlink_to("../../blobs/0a1b")
    (tmp_path / "linked").symlink_to(snapshot)
    for folder, name in [(snapshot, "a.png"), (snapshot, "more/../a.png"), (snapshot, f"{snapshot}/a.png"), (tmp_path / "linked", "a.png")]:
        assert read_picture(folder, name) == encoded(UPRIGHT)
    assert read_picture(tmp_path / "linked", f"{snapshot}/a.png") == encoded(UPRIGHT)


def test_a_path_that_leads_outside_is_refused_as_it_is_written(tmp_path: Path):
    folder = tmp_path / "pictures"
    (folder / "inside").mkdir(parents=True)
    (tmp_path / "pictures-of-others").mkdir()
    for place in (tmp_path, tmp_path / "pictures-of-others"):
        (place / "a.png").write_bytes(encoded(UPRIGHT))
    (folder / "up").symlink_to(tmp_path)
    for name in ("../a.png", "inside/../../a.png", str(tmp_path / "a.png"), "../pictures-of-others/a.png", "up/../../a.png"):
        with pytest.raises(PictureError, match=r"^image '.*' is outside the folder of pictures"):
            read_picture(folder, name)
    for name in ("none.png", "inside", "a\0b", "none/../../pictures/none.png"):
        with pytest.raises(PictureError, match=r"^image '.*' does not exist in"):
            read_picture(folder, name)
