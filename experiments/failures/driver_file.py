"""How far the driver is, in a file: a driver that is killed cannot tell itself, but the next one can.

Two drivers of one run would overwrite each other's checkpoints, so a second one is refused while the file of the first is kept up to date.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil

NAME = "driver.json"
LOOK_S = 0.3
BEAT_S = 5.0
"""The file is written anew at least as often."""
SILENT_S = 60.0
"""A driver on another node whose file is as old as this is dead; a younger file is watched for so long at most."""


def live_driver(run_folder: Path) -> str:
    """Who drives this run now, in words; empty: nobody but, maybe, this process.

    Of a process of this node the system knows whether it lives. Of another node only the file speaks: one that may still be written is watched,
    because clocks differ; that takes up to `SILENT_S` after a kill, and a moment where the driver lives.
    """
    before = _read(run_folder / NAME)
    if "beat" not in before or (before["node"], before["process"]) == (socket.gethostname(), os.getpid()):
        return ""
    here = before["node"] == socket.gethostname()
    if not (_lives(before) if here else _is_written(run_folder / NAME, before)):
        return ""
    return f"process {before['process']} on node {before['node']} (phase {before['phase']}, iteration {before['iteration']})"


def _read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def _lives(before: Mapping[str, Any]) -> bool:
    """A process with this id that began at another time is another one."""
    try:
        process = psutil.Process(before["process"])
        return abs(process.create_time() - before["started"]) < 1 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _is_written(file: Path, before: Mapping[str, Any]) -> bool:
    end = time.monotonic() + min(SILENT_S, before["beat"] + SILENT_S - time.time())
    while time.monotonic() < end:
        time.sleep(LOOK_S)
        if (now := _read(file)) != before:
            return bool(now)
    return False


class DriverFile:
    """In its `with` block RUN/driver.json says what the driver is doing; it is gone when the driver ends in order, whatever the outcome."""

    def __init__(self, run_folder: Path, now: Callable[[], dict[str, Any]]):
        """`now`: phase, iteration and policy version."""
        self._file, self._now, self._over = run_folder / NAME, now, threading.Event()
        self.before = _read(self._file)
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
        beat = -BEAT_S
        me = {"process": os.getpid(), "started": psutil.Process().create_time(), "node": socket.gethostname()}
        while not self._over.is_set():
            if (now := me | self._now()) != written or time.monotonic() - beat >= BEAT_S:
                aside = self._file.with_suffix(".new")
                try:
                    aside.write_text(json.dumps(now | {"when": time.strftime("%H:%M:%S"), "beat": time.time()}) + "\n", encoding="utf-8")
                    aside.replace(self._file)
                    written, beat = now, time.monotonic()
                except OSError:
                    pass
            self._over.wait(LOOK_S)
