"""Heartbeat file RUN/driver.json: a driver that is killed leaves it behind, and the next driver of the run reports the crash.
While it changes, a driver on another node is refused, as many shared file systems have no locks (`retrieval_actors/folder_lock.py`)."""

import json
import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

NAME = "driver.json"
CHECK_S = 0.3  # the file is written within this time when the phase changes,
BEAT_S = 5.0  # and at least this often
SILENT_S = 60.0  # a driver on another node is dead when its file is this old; a younger file is watched for at most this long


def driver_elsewhere(run_folder: Path) -> str:
    """The process on another node that drives this run; empty: none. As clocks differ, the file is watched for at most `SILENT_S` seconds."""
    last = read_json(file := run_folder / NAME)
    if last.get("node", socket.gethostname()) == socket.gethostname():
        return ""
    seconds = min(SILENT_S, last["beat"] + SILENT_S - time.time())
    if seconds > 0:
        print(f"{file} is from node {last['node']}: watching up to {seconds:.0f} s whether its driver still runs", flush=True)
    end = time.monotonic() + seconds
    while (now := read_json(file)) == last and time.monotonic() < end:
        time.sleep(CHECK_S)
    if not now or now == last:
        return ""
    return f"process {now['process']} on node {now['node']} (phase {now['phase']}, iteration {now['iteration']})"


def read_json(file: Path) -> dict[str, Any]:
    """Contents of a JSON file; empty if it is missing."""
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


class Heartbeat:
    """Keeps RUN/driver.json up to date within its `with` block. `progress`: returns phase, iteration and policy version."""

    def __init__(self, run_folder: Path, progress: Callable[[], dict[str, Any]]):
        self._file, self._progress, self._over = run_folder / NAME, progress, threading.Event()
        self.crashed = read_json(self._file)  # the last heartbeat of an earlier driver that crashed; empty when none did

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join(timeout=10)
        self._file.unlink(missing_ok=True)

    def _beat(self) -> None:
        written, beat = dict[str, Any](), -BEAT_S
        me = {"process": os.getpid(), "node": socket.gethostname()}
        while not self._over.is_set():
            if (now := me | self._progress()) != written or time.monotonic() - beat >= BEAT_S:
                aside = self._file.with_suffix(".new")
                with suppress(OSError):  # a full disk is reported where checkpoints are saved
                    aside.write_text(json.dumps(now | {"when": time.strftime("%H:%M:%S"), "beat": time.time()}) + "\n", encoding="utf-8")
                    aside.replace(self._file)
                    written, beat = now, time.monotonic()
            self._over.wait(CHECK_S)
