"""Calls functions in new processes, to measure their memory."""

from __future__ import annotations

import multiprocessing
import socket
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

MIB = 2**20


def in_fresh_process(function: Callable[..., Any], *arguments: Any, deadline_s: float = 300.0) -> Any:
    """Raises TimeoutError after the deadline."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("forkserver")) as pool:
        return pool.submit(function, *arguments).result(deadline_s)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def resident(field: str = "VmRSS:", pid: int | str = "self") -> int:
    """Bytes of memory of this process, or of another one (Linux)."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def forget_peak(pid: int | str = "self") -> None:
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def peak(pid: int | str = "self") -> int:
    """The largest since `forget_peak`."""
    return resident("VmHWM:", pid)
