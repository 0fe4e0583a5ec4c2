"""Functions run in processes of their own: what they use of memory is theirs alone, and several of them can be ranks of one group."""

from __future__ import annotations

import multiprocessing
import socket
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

STATUS, FORGET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
MIB = 2**20


def preload(*modules: str) -> None:
    """Import these once, in a server from which the processes are forked: each would take seconds to do it."""
    multiprocessing.get_context("forkserver").set_forkserver_preload(list(modules))


def in_fresh_process(function: Callable[..., Any], *arguments: Any) -> Any:
    return on_ranks(function, [arguments])[0]


def on_ranks(function: Callable[..., Any], arguments: list[tuple[Any, ...]], deadline_s: float = 300.0) -> list[Any]:
    """The results of one call for each tuple of arguments, each in its own process, all at once. Raises TimeoutError after the deadline."""
    with ProcessPoolExecutor(len(arguments), multiprocessing.get_context("forkserver"), max_tasks_per_child=1) as pool:
        return [call.result(deadline_s) for call in [pool.submit(function, *each) for each in arguments]]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def resident() -> int:
    """Bytes of memory that this process holds now (Linux)."""
    return _bytes("VmRSS:")


def forget_peak() -> None:
    FORGET.write_text("5")


def peak() -> int:
    """The most bytes that this process has held since `forget_peak`."""
    return _bytes("VmHWM:")


def _bytes(field: str) -> int:
    return next(int(line.split()[1]) * 1024 for line in STATUS.read_text().splitlines() if line.startswith(field))
