"""One broadcast over links of a known speed: a network namespace for each node, a shaped link for each namespace, all on this machine.

The bytes travel by `rollout/broadcast.py`, the code that `learner.transport=collective` uses. It needs root and iproute2 (`ip`, `tc`); nothing
of it is left behind.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

SUBNET = "10.199.0"
CLONE_NEWNET = 0x40000000
"""Of `setns(2)`."""
DEADLINE_S = 60.0
REPEATS = 2


def links_can_be_limited() -> bool:
    return os.name == "posix" and os.geteuid() == 0 and all(shutil.which(tool) for tool in ("ip", "tc"))


@contextmanager
def limited_nodes(count: int, mbit_per_s: int) -> Iterator[list[str]]:
    """Names of network namespaces, whose only way to each other is a link of this speed in each direction, and a bridge.

    Raises RuntimeError where the kernel refuses one.
    """
    mark = f"rl{os.getpid() % 100000}"
    bridge, names = f"{mark}b", [f"{mark}n{i}" for i in range(count)]
    shape = ["root", "tbf", "rate", f"{mbit_per_s}mbit", "burst", "128kb", "latency", "200ms"]
    try:
        _run("ip", "link", "add", bridge, "type", "bridge")
        _run("ip", "link", "set", bridge, "up")
        for i, name in enumerate(names):
            _run("ip", "netns", "add", name)
            _run("ip", "link", "add", f"{mark}h{i}", "type", "veth", "peer", "name", "eth0", "netns", name)
            _run("ip", "link", "set", f"{mark}h{i}", "master", bridge, "up")
            _run("ip", "-n", name, "addr", "add", f"{SUBNET}.{i + 1}/24", "dev", "eth0")
            _run("ip", "-n", name, "link", "set", "eth0", "up")
            _run("ip", "-n", name, "link", "set", "lo", "up")
            _run("tc", "-n", name, "qdisc", "add", "dev", "eth0", *shape)
            _run("tc", "qdisc", "add", "dev", f"{mark}h{i}", *shape)
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)
        subprocess.run(["ip", "link", "del", bridge], capture_output=True)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")


def broadcast_seconds(nodes: Sequence[str], size: int) -> tuple[float, float]:
    """Until the last of all nodes but the first holds `size` bytes that the first sends: (all in one group, one group after another of two).

    The former is what a broadcast does: who holds the bytes sends them on. The latter is a sender that serves each by itself. A process of its own
    has the nodes as its children: one that has threads already cannot be forked.
    """
    command = [sys.executable, "-m", "experiments.benchmarks.limited_links", str(size), *nodes]
    done = subprocess.run(command, capture_output=True, text=True, timeout=5 * DEADLINE_S)
    if done.returncode:
        raise RuntimeError(f"a broadcast over limited links failed: {done.stderr.strip()[-500:]}")
    together, one_by_one = map(float, done.stdout.split())
    return together, one_by_one


def _both_ways(nodes: Sequence[str], size: int) -> tuple[float, float]:
    together = _median_seconds(nodes, size, [list(range(len(nodes)))])
    one_by_one = _median_seconds(nodes, size, [[0, receiver] for receiver in range(1, len(nodes))])
    return together, one_by_one


def _median_seconds(nodes: Sequence[str], size: int, groups: list[list[int]]) -> float:
    import torch.distributed  # noqa: F401  (once, for all children)

    reading, writing = os.pipe()
    port = 20000 + os.getpid() % 20000
    children = []
    for node in range(len(nodes)):
        child = os.fork()  # torch is imported already, a process costs milliseconds
        if child == 0:
            status = 1
            try:
                seconds = _take_part(nodes[node], node, size, groups, port)
                os.write(writing, "".join(f"{node} {repeat} {value:.6f}\n" for repeat, value in enumerate(seconds)).encode())
                status = 0
            finally:
                os._exit(status)
        children.append(child)
    os.close(writing)
    with os.fdopen(reading) as answers:
        lines = [line.split() for line in answers]
    failed = [child for child in children if os.waitpid(child, 0)[1]]
    if failed:
        raise RuntimeError(f"{len(failed)} of {len(nodes)} members of a broadcast failed; what they said is above")
    slowest = [max(float(value) for _, repeat, value in lines if int(repeat) == number) for number in range(1, 1 + REPEATS)]
    return statistics.median(slowest)


def _take_part(node: str, place: int, size: int, groups: list[list[int]], port: int) -> list[float]:
    """Seconds of each repeat (the first one warms up), from when all were ready until this node's last transfer was over."""
    import torch

    from rollout.broadcast import BroadcastGroup

    namespace = os.open(f"/var/run/netns/{node}", os.O_RDONLY)
    if ctypes.CDLL(None, use_errno=True).setns(namespace, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), f"cannot enter the network namespace {node}")
    os.environ |= {"GLOO_SOCKET_IFNAME": "eth0", "RES_OPTIONS": "timeout:1 attempts:1"}
    torch.set_num_threads(1)
    mine = [(number, members) for number, members in enumerate(groups) if place in members]
    joined = [
        BroadcastGroup(f"{SUBNET}.1", port + number, members.index(place), len(members), DEADLINE_S, torch.device("cpu"))
        for number, members in mine
    ]
    everyone = range(1 + max(member for members in groups for member in members))
    store = torch.distributed.TCPStore(
        f"{SUBNET}.1", port + len(groups), len(everyone), place == 0, timedelta(seconds=DEADLINE_S), wait_for_workers=False
    )
    data = torch.ones(size, dtype=torch.uint8)
    seconds = []
    for repeat in range(1 + REPEATS):
        store.add(f"ready {repeat}", 1)
        while store.add(f"ready {repeat}", 0) < len(everyone):
            time.sleep(0.002)
        began = time.perf_counter()
        for group in joined:
            if place == 0:
                group.send(data)
                group.finish()
            else:
                group.receive(0, size)
        seconds.append(time.perf_counter() - began)
    store.add("done", 1)
    while place == 0 and store.add("done", 0) < len(everyone):  # its store serves the others
        time.sleep(0.01)
    return seconds


if __name__ == "__main__":
    print(*_both_ways(sys.argv[2:], int(sys.argv[1])))
