"""One writer for each folder, and replacing a folder in one step."""

import atexit
import ctypes
import fcntl
import os
import shutil
import socket
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import TextIO

import psutil

AT_FDCWD, RENAME_EXCHANGE = -100, 2  # of Linux's renameat2
_HELD: dict[Path, TextIO] = {}  # folder -> the open file whose lock this process holds; the system drops it when the process ends


class FolderHeldError(ValueError):
    """Another process writes into the folder; the message names it."""


def hold(folder: str | Path) -> AbstractContextManager[object]:
    """Locks `folder` for this process, by a file beside it, until the `with` block ends or, without one, until the process ends. A second call
    in the process does nothing. Raises FolderHeldError. A file system without locks gives no protection."""
    path = Path(folder).absolute()
    if path in _HELD:
        return nullcontext()
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.parent / f".{path.name}.lock"
    while True:
        file = lock.open("a+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise FolderHeldError(f"{folder} is being written by {holder}: wait for it, end it, or name another folder") from None
        except OSError:
            break
        if lock.exists() and os.path.samestat(lock.stat(), os.fstat(file.fileno())):
            break  # else the last holder has just removed the file: open a new one
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()} ({command_of(psutil.Process())})\n")
    file.flush()
    _HELD[path] = file
    held = ExitStack()
    held.callback(_release, path, lock)
    atexit.register(held.close)
    return held


def _release(path: Path, lock: Path) -> None:
    lock.unlink(missing_ok=True)  # before the lock is released: afterwards the file may belong to the next holder
    _HELD.pop(path).close()


def command_of(process: psutil.Process) -> str:
    """The command line of the process, cut to 120 characters."""
    return " ".join(" ".join(process.cmdline()).split())[:120]


def replace_folder(folder: Path, new: Path) -> None:
    """Renames `new`, a folder on the same disk, to `folder`, and removes the old one. After a kill `folder` is the complete old one or the complete
    new one. Where two folders cannot be exchanged in one step (NFS, macOS), `folder` is missing for a moment."""
    if not folder.exists():
        new.rename(folder)
    elif _exchange(folder, new):
        shutil.rmtree(new, ignore_errors=True)
    else:
        old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
        folder.rename(old)
        new.rename(folder)
        shutil.rmtree(old, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Exchanges two folders in one step; False if the system cannot."""
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)
    return renameat2 is not None and renameat2(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0
