"""Ending a training between two iterations."""

from __future__ import annotations

import signal
from typing import Any


class Stop:
    """In its `with` block SIGTERM and Ctrl-C end the training after the iteration that is going on; a second signal ends it at once.

    Entered after Ray has started: Ray installs handlers of its own.
    """

    asked = False
    reason = ""
    """Why, where it was not a signal."""

    def ask(self, reason: str) -> None:
        """End the training after this iteration."""
        self.asked, self.reason = True, self.reason or reason

    def __enter__(self) -> Stop:
        self._before = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: Any) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
