"""Stops a training between two iterations."""

import signal
import threading
from typing import Any, Self


class Stop:
    """In its `with` block SIGTERM and Ctrl-C end the training after the current iteration; a second signal raises KeyboardInterrupt."""

    requested, reason = False, ""  # `reason`: empty for a signal

    def request(self, reason: str) -> None:
        self.requested, self.reason = True, self.reason or reason

    def __enter__(self) -> Self:
        in_main_thread = threading.current_thread() is threading.main_thread()
        self._before = {number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM) if in_main_thread}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: Any) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
