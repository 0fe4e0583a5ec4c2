"""Flags of fictional countries: drawn, described in words, and photographed under changing light."""

import io
import random

import numpy as np
from PIL import Image as PillowImage

SIZE = 56  # Pixels a side: four image tokens for a patch of 14 and a merge of 2
COLOURS = {
    "red": (200, 30, 40),
    "blue": (30, 50, 190),
    "green": (20, 140, 60),
    "white": (245, 245, 245),
    "black": (20, 20, 20),
    "yellow": (245, 210, 40),
    "orange": (240, 130, 20),
    "purple": (120, 40, 150),
}
LAYOUTS = ("vertical stripes", "horizontal stripes", "cross", "disc")
Flag = tuple[str, tuple[str, ...]]  # (layout, colours): three colours for stripes, (ground, figure) for a cross or a disc


def random_flag(rng: random.Random) -> Flag:
    layout = rng.choice(LAYOUTS)
    return layout, tuple(rng.sample(list(COLOURS), 3 if "stripes" in layout else 2))


def describe(flag: Flag) -> str:
    """`vertical stripes red white green`, `cross red on white`."""
    layout, colours = flag
    return f"{layout} {' '.join(colours)}" if "stripes" in layout else f"{layout} {colours[1]} on {colours[0]}"


def draw(flag: Flag) -> np.ndarray:
    """(SIZE, SIZE, 3) uint8: the flag without noise."""
    layout, names = flag
    colours = [np.array(COLOURS[name], np.uint8) for name in names]
    picture = np.full((SIZE, SIZE, 3), colours[0])
    if "stripes" in layout:
        for i, colour in enumerate(colours):
            stripe = slice(i * SIZE // 3, (i + 1) * SIZE // 3)
            picture[(slice(None), stripe) if layout.startswith("vertical") else stripe] = colour
    elif layout == "cross":
        bar = slice(SIZE // 2 - 8, SIZE // 2 + 8)
        picture[bar] = picture[:, bar] = colours[1]
    else:
        y, x = np.mgrid[:SIZE, :SIZE] - (SIZE - 1) / 2
        picture[x**2 + y**2 < 16**2] = colours[1]
    return picture


def photograph(flag: Flag, rng: np.random.Generator) -> np.ndarray:
    """(SIZE, SIZE, 3) uint8: the flag with a small random shift, brightness and noise."""
    shifted = np.roll(draw(flag), rng.integers(-2, 3, size=2), axis=(0, 1)).astype(np.float32)
    light = rng.uniform(0.85, 1.15)
    photograph = shifted * light + rng.normal(0, 10, shifted.shape) + rng.normal(0, 6, (1, 1, 3))
    return np.clip(photograph, 0, 255).astype(np.uint8)


def png(picture: np.ndarray) -> bytes:
    """(height, width, 3) uint8 -> PNG."""
    buffer = io.BytesIO()
    PillowImage.fromarray(picture).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()
