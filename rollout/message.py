"""A prompt on its way to the chat template."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Message:
    """One prompt before the chat template: `image` says whether the question's picture is shown."""

    system: str
    user: str
    image: bool
    image_last: bool = False
    """The picture stands behind the user's text, not in front of it."""
