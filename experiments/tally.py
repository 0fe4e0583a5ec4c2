"""What adds up over a run, and survives a restart with its checkpoints."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Tally:
    seconds: dict[str, float] = field(default_factory=dict)
    """By phase: `set_up`, `evaluate_before`, `train` (and its parts `train_rollout`, ...), `validate`, `checkpoint`, `evaluate_after`, ..."""
    turns: int = 0
    sampled_tokens: int = 0
    search_errors: int = 0
    best: dict[str, Any] = field(default_factory=dict)
    """Iteration, policy version and validation score of the best policy so far."""
    validated: dict[str, Any] = field(default_factory=dict)
    """Iteration and score of the last validation."""
    failed_saves: int = 0
    """Checkpoints and policies that could not be written."""
    restarts: int = 0
    """Times that the learner group was started anew because it had lost a rank."""
    failures: int = 0
    """Processes and nodes that were lost: each has a file in `failures/` of the run folder."""
    warnings: list[dict[str, Any]] = field(default_factory=list)
    """Signs of collapse, each with the iteration in which it came up."""

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self._spent(phase, time.monotonic() - began)

    def add(self, row: dict[str, Any]) -> None:
        """One iteration's figures, as in metrics.jsonl."""
        self.turns += row["turns"]
        self.sampled_tokens += row["sampled_tokens"]
        self.search_errors += int(row.get("search_errors", 0))
        for key, seconds in row.items():
            if key.startswith("seconds_"):
                self._spent(f"train_{key.removeprefix('seconds_')}", seconds)

    def _spent(self, phase: str, seconds: float) -> None:
        self.seconds[phase] = self.seconds.get(phase, 0.0) + seconds
