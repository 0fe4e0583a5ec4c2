"""How far the driver is, in a file: a driver that is killed cannot tell itself, but the next one can."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

NAME = "driver.json"
LOOK_S = 0.3


class DriverFile:
    """In its `with` block RUN/driver.json says what the driver is doing; it is gone when the driver ends in order, whatever the outcome."""

    def __init__(self, run_folder: Path, now: Callable[[], dict[str, Any]]):
        """`now`: phase, iteration and policy version."""
        self._file, self._now, self._over = run_folder / NAME, now, threading.Event()
        self.before: dict[str, Any] = json.loads(self._file.read_text(encoding="utf-8")) if self._file.exists() else {}
        """What an earlier driver of this run was doing when it was lost; empty: none was."""

    def __enter__(self) -> DriverFile:
        self._thread = threading.Thread(target=self._keep, name="driver file", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join(timeout=10)
        self._file.unlink(missing_ok=True)

    def _keep(self) -> None:
        """A disk that is full or gone is the checkpoints' to tell."""
        written: dict[str, Any] = {}
        me = {"process": os.getpid(), "node": socket.gethostname()}
        while not self._over.is_set():
            if (now := me | self._now()) != written:
                aside = self._file.with_suffix(".new")
                try:
                    aside.write_text(json.dumps(now | {"when": time.strftime("%H:%M:%S")}) + "\n", encoding="utf-8")
                    aside.replace(self._file)
                    written = now
                except OSError:
                    pass
            self._over.wait(LOOK_S)
