"""How another process ended, which Linux tells to those who had opened it before (6.15 and later; elsewhere nobody but its parent knows)."""

from __future__ import annotations

import fcntl
import os
import signal
import struct
from dataclasses import dataclass

GET_INFO = 0xC040FF0B
"""PIDFD_GET_INFO of linux/pidfd.h: _IOWR(0xFF, 11, struct pidfd_info), 64 bytes."""
EXIT = 1 << 3
"""PIDFD_INFO_EXIT: the bit that asks for, and confirms, the exit code."""
EXIT_CODE_AT = 60
"""Offset of the exit code in the struct."""


@dataclass(frozen=True)
class ExitStatus:
    code: int | None = None
    """What it ended with by itself."""
    signal: str = ""
    """`SIGKILL`, ...: what ended it."""

    def __str__(self) -> str:
        if self.signal:
            return f"killed by {self.signal}"
        return "unknown" if self.code is None else f"exit code {self.code}"


def opened(pid: int) -> int | None:
    """A handle for `exit_status`; None where the process is gone already or the system has none."""
    try:
        return os.pidfd_open(pid)
    except (OSError, AttributeError):
        return None


def exit_status(handle: int) -> ExitStatus | None:
    """None while the process runs, or where the system does not tell."""
    answer = bytearray(struct.pack("<Q", EXIT) + bytes(56))
    try:
        fcntl.ioctl(handle, GET_INFO, answer)
    except OSError:
        return None
    if not struct.unpack_from("<Q", answer)[0] & EXIT:
        return None
    (status,) = struct.unpack_from("<i", answer, EXIT_CODE_AT)
    if os.WIFSIGNALED(status):
        return ExitStatus(signal=signal.Signals(os.WTERMSIG(status)).name)
    return ExitStatus(code=os.waitstatus_to_exitcode(status))
