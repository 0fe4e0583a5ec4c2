"""Ray for one command: started and ended by it, or, where RAY_ADDRESS is set (as in a submitted job), the running cluster."""

import logging
import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import ray

from experiments.cluster.findings import refuse
from experiments.cluster.placement import requests_of
from experiments.cluster.ray_checks import check_head, joined_address, start_findings
from experiments.command_line.entry_point import QUIET
from experiments.config import TrainConfig

REPORT_S, GRACE_S, START_S = 10.0, 3.0, 180.0  # between progress lines; from a signal to the end; until Ray times out
LOGS = "look at the newest session_*/logs in Ray's temporary folder (/tmp/ray); RAY_ADDRESS has to be set as on a node of that cluster"
say = partial(print, flush=True)


def cpus_asked_for(config: TrainConfig) -> int:
    """CPUs that the actors of a run reserve. A machine with fewer works too: Ray counts CPUs, but does not pin processes to them."""
    return int(sum(request.count * request.cpus for request in requests_of(config, []))) + 4


def check_start(config: TrainConfig) -> None:
    """Raises RunConfigError, one line, where Ray could not be started or joined."""
    if not ray.is_initialized():
        refuse(start_findings(config), say)


@contextmanager
def start_ray(config: TrainConfig) -> Iterator[None]:
    """Starts a Ray that ends with the block, or joins that of RAY_ADDRESS. Raises RunConfigError where neither is possible."""
    arguments: dict[str, Any] = {}
    if not joined_address():
        cpus = config.ray.num_cpus or max(os.cpu_count() or 1, cpus_asked_for(config))
        memory = config.ray.object_store_mb * 2**20
        arguments = {"address": "local", "num_cpus": cpus, "object_store_memory": memory, "include_dashboard": False}
    with _ray(arguments, lambda: check_start(config)):
        yield


@contextmanager
def without_core_lines() -> Iterator[None]:
    """In the block, what Ray's C++ core writes to stderr of this process is left out: RLlib passes its configuration by reference to workers that
    may restart, and the core calls that an error on every start. Other lines are written when the block ends."""
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as aside:
        os.dup2(aside.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr, 2)
            aside.seek(0)
            for line in aside:
                if b"core_worker.cc" not in line:
                    os.write(stderr, line)
            os.close(stderr)


@contextmanager
def join_ray() -> Iterator[None]:
    """Joins the Ray that runs on this machine, or that RAY_ADDRESS names. Raises RunConfigError where there is none."""
    with _ray({"address": "auto"}, lambda: refuse([check_head(joined_address() or "auto")])):
        yield


@contextmanager
def _ray(arguments: dict[str, Any], check: Callable[[], None]) -> Iterator[None]:
    for key, value in QUIET.items():
        os.environ.setdefault(key, value)
    logging.getLogger("ray.rllib").setLevel(logging.ERROR)
    if ray.is_initialized():  # the caller that started it ends it
        yield
        return
    check()
    before = signal.getsignal(signal.SIGTERM)
    with bounded("Ray's start"):
        try:
            ray.init(logging_level="error", log_to_driver=False, **arguments)
            if before == signal.default_int_handler and threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, before)
        except SystemExit:  # Ray's SIGTERM handlers raise it; that of its C++ side aborts the process 3 s later
            signal.alarm(0)
            raise KeyboardInterrupt from None
    try:
        yield
    finally:
        with bounded("Ray's end"):
            ray.shutdown()


@contextmanager
def bounded(what: str) -> Iterator[None]:
    """A block that waits outside Python, where no signal handler runs: a thread reports, and ends the process on a signal or after `START_S`."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received, send = socket.socketpair()
    received.settimeout(REPORT_S)
    send.setblocking(False)
    before = signal.set_wakeup_fd(send.fileno(), warn_on_full_buffer=False)
    over = threading.Event()

    def watch() -> None:
        began = time.monotonic()
        while not over.is_set():
            try:
                number = received.recv(1)[0]
            except TimeoutError:
                seconds = time.monotonic() - began
                say(f"{what} takes {seconds:.0f} s so far (Ctrl-C ends it)")
                if seconds > START_S:
                    say(f"error: {what} took {seconds:.0f} s and was given up; {LOGS}")
                    os._exit(1)
            else:
                if number in (signal.SIGINT, signal.SIGTERM) and not over.wait(GRACE_S):
                    say(f"stopped during {what}")
                    os._exit(130)

    watcher = threading.Thread(target=watch, daemon=True, name="watch on Ray")
    watcher.start()
    try:
        yield
    finally:
        over.set()
        signal.set_wakeup_fd(before)
        with received, send:
            send.send(b"x")
            watcher.join()
