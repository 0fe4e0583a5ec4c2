"""The service as a user starts it: a process of its own, ended as Ctrl-C ends it."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

ROOT = Path(__file__).parents[1]
POLICY = ROOT / "experiments/worlds/cold_start_policy"
READY_SECONDS = 240
ENDS_SECONDS = 90


@dataclass
class Service:
    url: str
    process: subprocess.Popen
    said: Path
    """What it printed."""
    requests: Path
    """Its request log."""

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60)

    def workers(self, title: str) -> list[psutil.Process]:
        """The processes of its Ray whose title holds `title`."""
        found = []
        for child in psutil.Process(self.process.pid).children(recursive=True):
            try:
                if title in " ".join(child.cmdline()):
                    found.append(child)
            except (psutil.NoSuchProcess, psutil.ZombieProcess):
                continue
        return found

    def stop(self) -> None:
        self.process.send_signal(signal.SIGINT)
        assert self.process.wait(timeout=ENDS_SECONDS) == 0, self.said.read_text()[-3000:]


@contextmanager
def started(folder: Path, *settings: str) -> Iterator[Service]:
    """On the knowledge bases of a small atlas. Waits until it is ready."""
    port, said, requests = free_port(), folder / "serve.log", folder / "requests.jsonl"
    command = [sys.executable, "-m", "experiments.cli", "serve", str(POLICY), f"serve.port={port}", f"serve.request_log={requests}"]
    command += [f"data.kb_folder={folder / 'kbs'}", "data.worlds=1", "data.countries=6", "data.train_questions=8", *settings]
    with said.open("w") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
    service = Service(f"http://127.0.0.1:{port}", process, said, requests)
    try:
        end = time.monotonic() + READY_SECONDS
        while not is_ready(service.url):
            assert process.poll() is None, said.read_text()[-3000:]
            assert time.monotonic() < end, said.read_text()[-3000:]
            time.sleep(0.2)
        yield service
        if process.poll() is None:
            service.stop()
    finally:
        process.kill()


def is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def without_times(answer: dict) -> dict:
    """What has to be equal when the same is asked again."""
    steps = [step | {"seconds": None} for step in answer["steps"]]
    return answer | {"id": None, "seconds": None, "steps": steps}
