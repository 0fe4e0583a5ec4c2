"""A Ray head in processes of its own, with token authentication, for tests of what talks to a cluster from outside."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
RAY = Path(sys.executable).with_name("ray")


@dataclass(frozen=True)
class Head:
    dashboard: str
    """Its address, if there is one."""
    gcs: str
    """What RAY_ADDRESS is for a driver."""
    environment: dict[str, str]
    """Of a client."""


def free_ports(count: int) -> list[int]:
    listeners = [socket.socket() for _ in range(count)]
    for listener in listeners:
        listener.bind(("127.0.0.1", 0))
    ports = [listener.getsockname()[1] for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports


def status_of(address: str, token: str = "") -> int:
    """HTTP status of a dashboard, 0 while nobody listens."""
    request = urllib.request.Request(f"{address}/api/version", headers={"Authorization": f"Bearer {token}"} if token else {})
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


@contextmanager
def own_head(*options: str, port: int = 0, with_dashboard: bool = True, variables: Mapping[str, str] | None = None) -> Iterator[Head]:
    """Ends with the block. `options` and `variables`: more of them, for `ray start`. Its folder is short: sockets lie in it."""
    folder = tempfile.mkdtemp(prefix="ray-")
    gcs, dashboard, agent, agent_grpc, client = free_ports(5)
    gcs = port or gcs
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0"}
    environment["RAY_agent_register_timeout_ms"] = "120000"  # a head whose agent is late, on a busy machine, would end itself
    command = [str(RAY), "start", "--head", "--block", f"--temp-dir={folder}", f"--port={gcs}", "--node-ip-address=127.0.0.1"]
    command += [f"--include-dashboard={str(with_dashboard).lower()}", f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}"]
    command += [f"--dashboard-agent-listen-port={agent}", f"--dashboard-agent-grpc-port={agent_grpc}"]
    command += ["--object-store-memory=300000000", "--disable-usage-stats", "--min-worker-port=0", "--max-worker-port=0", *options]
    said = Path(folder, "head.log")
    with said.open("w") as log:
        process = subprocess.Popen(
            command, env=environment | (variables or {}), cwd=REPOSITORY, stdout=log, stderr=log, start_new_session=True
        )
    address = f"http://127.0.0.1:{dashboard}"
    try:
        end = time.monotonic() + 90
        while not (
            status_of(address, environment["RAY_AUTH_TOKEN"]) == 200 if with_dashboard else "Ray runtime started" in said.read_text()
        ):
            assert process.poll() is None, f"the head ended: {said.read_text()[-2000:]}"
            assert time.monotonic() < end, f"the head did not start: {said.read_text()[-2000:]}"
            time.sleep(0.5)
        yield Head(address, f"127.0.0.1:{gcs}", environment)
    finally:
        print(said.read_text()[-3000:])  # shown when a test fails
        process.terminate()  # `--block` ends everything that it started
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)
