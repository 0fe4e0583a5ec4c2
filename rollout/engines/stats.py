"""What an engine has done so far, as plain numbers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EngineStats:
    """Counted since the engine was made; subtract two of them for a span of time."""

    sampled_tokens: int = 0
    """Response tokens, those of responses included that an update or an abort cut off."""
    prefilled_tokens: int = 0
    """Prompt tokens; a prompt counts once for all its siblings, and again when an update made it begin again."""
    prefill_s: float = 0.0
    decode_s: float = 0.0
    """Decoding and sampling."""
    idle_s: float = 0.0
    """Between two calls of `collect`, while it was paused, or with nothing to do."""
    slot_steps_used: int = 0
    """Responses that went one token further in a decode step, summed over steps."""
    slot_steps_available: int = 0
    """Slots, summed over decode steps. Used / available are the slots in use."""
    cached_bytes: int = 0
    """Keys and values that are reserved right now."""
    cached_bytes_peak: int = 0
