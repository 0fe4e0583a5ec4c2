"""Long texts in windows of words that overlap."""

from __future__ import annotations

from collections.abc import Iterator


def word_windows(text: str, words: int, stride: int) -> Iterator[str]:
    """Windows of `words` words, each beginning `stride` words after the one before; the last may be shorter, and every word is in one.

    A text that fits is one window, one without words is none. Raises ValueError for a stride that leaves words out.
    """
    if not 0 < stride <= words:
        raise ValueError(f"windows of {words} words, {stride} apart: expected 0 < stride <= words")
    split = text.split()
    for start in range(0, len(split), stride):
        yield " ".join(split[start : start + words])
        if start + words >= len(split):
            return
