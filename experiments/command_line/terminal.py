"""Safe printing: control characters in text from files, models and errors are shown, never sent to the terminal."""

import re
import sys
from collections.abc import Iterable
from typing import Any

import rich.console
from rich.console import ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

CONTROL_CHARACTERS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f]"
)
"""Control characters other than tab and line feed, invisible and direction marks, and halves of surrogate pairs."""


def visible(text: str) -> str:
    """`text` with control and unprintable characters escaped: `\\x1b`, `\\r`, `\\u202e`."""
    return CONTROL_CHARACTERS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def markdown_cell(text: str) -> str:
    """`visible` text for a cell of a Markdown table: on one line, with `/` for `|`."""
    return visible(text.replace("\n", " ")).replace("|", "/")


class Console(rich.console.Console):
    """Rich's console for untrusted text: no markup, emoji codes, guessed colours or control characters. Styles come from `style` or `Text`."""

    def __init__(self, **options: Any):
        super().__init__(**{"markup": False, "emoji": False, "highlight": False, "width": None if sys.stdout.isatty() else 160} | options)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(visible(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)
