"""What was known of a process of this node when it ended: its memory, its exit status, the end of its log. Somebody has to have looked before."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import ray

from experiments.failures.exit_status import ExitStatus, exit_status, opened

SAMPLE_S = 0.5
STILL_ALIVE = -1
"""In the place of a count that will be taken when it has ended."""
LOG_LINES, LOG_BYTES = 12, 16_384
"""Of the end of a log: no more is read, and no more is shown."""
OOM_COUNTERS = (Path("/sys/fs/cgroup/memory.events"), Path("/proc/vmstat"))
"""Both have a line `oom_kill N`: processes that the kernel has killed for want of memory, in this container and on this machine."""


@dataclass(frozen=True)
class LastSeen:
    """Of one process."""

    exit: ExitStatus = field(default_factory=ExitStatus)
    memory_mb: float | None = None
    """Resident, in the last sample; None: it was never seen alive."""
    peak_mb: float | None = None
    node_memory: str = ""
    """Of the node in that sample: used and total."""
    oom_kills: int = 0
    """Processes of the node that the kernel killed for want of memory within about a second of its end."""
    log: tuple[str, ...] = ()


class NodeWatch:
    """On every node one: in the driver for its own, in an actor for each other."""

    def __init__(self, kills_now: Callable[[], int] | None = None) -> None:
        """`kills_now`: how many processes of the node the kernel has killed for want of memory; None: what the system says."""
        self._kills_now = kills_now or oom_kills
        self._logs = Path(ray._private.worker._global_node.get_session_dir_path()) / "logs"
        self._handles: dict[int, int | None] = {}
        self._memory: dict[int, tuple[float, float, str]] = {}
        self._oom_kills: dict[int, tuple[int, int]] = {}
        """Of the node: a sample before the last one in which a process was alive (the kernel counts before it kills), and after its end."""
        self._lock = threading.Lock()
        threading.Thread(target=self._sample, name="node watch", daemon=True).start()

    def watch(self, pids: Iterable[int]) -> None:
        """Look at these from now on, beside those that it looks at already."""
        with self._lock:
            for pid in pids:
                if pid not in self._handles:
                    self._handles[pid] = opened(pid)

    def last_seen(self, pid: int) -> LastSeen:
        with self._lock:
            handle, (memory, peak, node) = self._handles.get(pid), self._memory.get(pid, (0.0, 0.0, ""))
            before, after = self._oom_kills.get(pid, (0, 0))
        status = exit_status(handle) if handle is not None else None
        return LastSeen(
            exit=status or ExitStatus(),
            memory_mb=memory or None,
            peak_mb=peak or None,
            node_memory=node,
            oom_kills=(self._kills_now() if after == STILL_ALIVE else after) - before,
            log=last_lines(self._logs, pid),
        )

    def close(self) -> None:
        """Ends the samples."""
        with self._lock:
            for handle in self._handles.values():
                if handle is not None:
                    os.close(handle)
            self._handles = {}
            self._logs = Path()

    def _sample(self) -> None:
        page_mb = os.sysconf("SC_PAGE_SIZE") / 2**20
        kills = self._kills_now()
        while self._logs != Path():
            earlier, kills = kills, self._kills_now()
            memory = psutil.virtual_memory()
            node = f"{(memory.total - memory.available) / 2**30:.1f} of {memory.total / 2**30:.1f} GiB"
            with self._lock:
                for pid in self._handles:
                    if resident := _resident_pages(pid) * page_mb:
                        self._memory[pid] = resident, max(resident, self._memory.get(pid, (0.0, 0.0, ""))[1]), node
                        self._oom_kills[pid] = earlier, STILL_ALIVE
                    elif self._oom_kills.get(pid, (0, 0))[1] == STILL_ALIVE:  # it has ended: its last sample stays
                        self._oom_kills[pid] = self._oom_kills[pid][0], self._kills_now()
            time.sleep(SAMPLE_S)


def last_lines(logs: Path, pid: int) -> tuple[str, ...]:
    """The end of what the process wrote (Ray's worker-*-PID.err, and .out where that is empty), a bounded number of lines of bounded length."""
    for kind in ("err", "out"):
        for file in logs.glob(f"worker-*-{pid}.{kind}"):
            with file.open("rb") as log:
                log.seek(max(0, file.stat().st_size - LOG_BYTES))
                text = log.read().decode("utf-8", "replace").replace("\r", "\n")
            if lines := [line.rstrip()[:240] for line in text.splitlines() if line.strip() and not line.startswith(":")]:
                return tuple(lines[-LOG_LINES:])  # Ray marks jobs and actors with lines that begin with a colon
    return ()


def _resident_pages(pid: int) -> int:
    """0: it is gone, or ending: it has given its memory back."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0


def oom_kills(counters: Sequence[Path] = OOM_COUNTERS) -> int:
    """The first of the counters that is there; 0: none is."""
    for counter in counters:
        try:
            found = [line.split()[1] for line in counter.read_text().splitlines() if line.startswith("oom_kill ")]
        except OSError:
            continue
        if found:
            return int(found[0])
    return 0
