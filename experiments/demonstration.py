"""What the teacher of the cold start shows."""

from __future__ import annotations

from dataclasses import dataclass

from rollout.message import Message
from rollout.records import Image, TurnKind


@dataclass(frozen=True)
class Demonstration:
    """One turn to imitate."""

    kind: TurnKind
    message: Message
    image: Image | None
    response: str
