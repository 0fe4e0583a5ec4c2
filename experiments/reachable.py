"""Whether what lies outside this process can be reached: Ray and its nodes, ports, the hub, MLflow. Every look is bounded by a few seconds."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from experiments.config import REPOSITORY, RunConfigError, TrainConfig, find_policy
from experiments.datasets import Dataset
from experiments.findings import Finding
from experiments.placement import Node, place
from experiments.placement_table import knowledge_bases_of
from experiments.policy_shape import cached
from experiments.run_asks import RoleResources, asks_of

CONNECT_S, RAY_S = 3.0, 60.0
PORTS = {6379: "ray start --head", 8265: "Ray's dashboard", 8000: "make serve"}
ASK_RAY = """
import json, ray
ray.init(logging_level="error", log_to_driver=False)
from experiments.placement_table import cluster_nodes
stores = [n["Resources"].get("object_store_memory", 0) for n in ray.nodes() if n["Alive"]]
print(json.dumps([min(stores), [[n.name, n.cpus, n.gpus, n.memory, sorted(n.resources)] for n in cluster_nodes()]]))
"""


def examine_ray(config: TrainConfig, dataset: Dataset | None) -> Iterator[Finding]:
    """With RAY_ADDRESS: who answers there, and whether the run has a place on its nodes."""
    address = os.environ.get("RAY_ADDRESS", "")
    if address in ("", "local"):
        yield Finding("Ray", "started with each run, ended with it (RAY_ADDRESS is not set)")
        return
    if found := re.fullmatch(r"(?:\w+://)?\[?([^\]/]+?)\]?:(\d+)/?", address):
        host, port = found[1], int(found[2])
        try:
            socket.create_connection((host, port), CONNECT_S).close()
        except OSError as error:
            mend = "start a head there (ray start --head), correct RAY_ADDRESS, or unset it to start Ray with each run"
            yield Finding("Ray", f"nobody answers at RAY_ADDRESS={address} ({error})", mend)
            return
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH", "")]))}
    try:
        asked = subprocess.run(
            [sys.executable, "-c", ASK_RAY], capture_output=True, text=True, timeout=RAY_S, env=environment, cwd=REPOSITORY
        )
    except subprocess.TimeoutExpired:
        yield Finding(
            "Ray", f"RAY_ADDRESS={address} did not let us in within {RAY_S:g} s", "is that the port of a Ray head, of this version?"
        )
        return
    if asked.returncode:
        said = (asked.stderr.strip().splitlines() or ["no reason given"])[-1]
        mend = "same Ray and Python on both sides; with token authentication RAY_AUTH_MODE=token and the head's RAY_AUTH_TOKEN"
        yield Finding("Ray", f"RAY_ADDRESS={address}: {said[:200]}", mend)
        return
    smallest, found_nodes = json.loads(asked.stdout.splitlines()[-1])
    nodes = [Node(name, cpus, gpus, memory, frozenset(names)) for name, cpus, gpus, memory, names in found_nodes]
    totals = f"{len(nodes)} nodes, {sum(node.cpus for node in nodes):g} CPUs and {sum(node.gpus for node in nodes):g} GPUs free"
    roles = RoleResources.of(config, {name for node in nodes for name in node.resources})
    plan = place(asks_of(config, roles, knowledge_bases_of(dataset)), nodes)
    yield Finding("Ray", f"{address}: {totals}")
    yield object_stores(smallest, config.ray.object_store_mb)
    yield Finding("placement", "no place for all of the run" if plan.refusal else "everything has a place", plan.refusal)


def object_stores(smallest: float, wanted_mb: int) -> Finding:
    """`smallest`: bytes of the smallest object store of the cluster's nodes, which a run finds as they are."""
    short = smallest < wanted_mb * 2**20
    mend = f"start its nodes with ray start --object-store-memory={wanted_mb * 2**20}, else Ray writes to their disks" if short else ""
    return Finding("object store", f"{smallest / 2**20:,.0f} MiB on the smallest node, ray.object_store_mb={wanted_mb}", mend, fatal=False)


def examine_ports() -> Iterator[Finding]:
    """A run takes any free ports; those with a number of their own are for heads and services."""
    try:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
    except OSError as error:
        yield Finding("ports", f"none can be opened on 127.0.0.1 ({error})", "allow connections on the loopback interface")
    taken = []
    for port, whose in PORTS.items():
        with socket.socket() as probe:
            probe.settimeout(CONNECT_S)
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                taken.append(f"{port} ({whose})")
    yield Finding("ports", f"in use: {', '.join(taken)}" if taken else f"{', '.join(map(str, PORTS))} are free")


def examine_policy_source(config: TrainConfig) -> Finding:
    """The policy's folder, the local hub cache, or the hub."""
    name = config.train.policy
    try:
        found = find_policy(name)
    except RunConfigError as error:
        return Finding("policy", "missing", str(error))
    if (Path(found) / "config.json").is_file():
        return Finding("policy", found)
    if folder := cached(found):
        return Finding("policy", f"{found}, in the local cache: {folder}")
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        HfApi().model_info(found, timeout=CONNECT_S)
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError, RuntimeError) as error:
        mend = f"run `hf download {found}` where there is a network, copy the folder here and set train.policy to it"
        return Finding("policy", f"{found} is not here, and the hub is out of reach ({type(error).__name__})", mend)
    return Finding("policy", f"{found}, on the hub", f"`hf download {found}` before a run: every process would ask for it", fatal=False)


def examine_mlflow(config: TrainConfig) -> Finding:
    """A server has to answer; a database file has to have a folder. A run goes on without, so this is never fatal."""
    uri = config.tracking.uri
    if not config.tracking.mlflow:
        return Finding("MLflow", "off (tracking.mlflow=false)")
    mend = "start it, or set tracking.uri or tracking.mlflow=false: without it a run goes on, and only its folder remembers"
    if uri.startswith(("http://", "https://")):
        try:
            with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=CONNECT_S) as answer:
                return Finding("MLflow", f"{uri}: {answer.status}")
        except (urllib.error.URLError, OSError) as error:
            return Finding("MLflow", f"{uri} does not answer ({error})", mend, fatal=False)
    if uri.startswith("sqlite:///"):
        folder = Path(uri.removeprefix("sqlite:///")).absolute().parent
        if not (folder.is_dir() and os.access(folder, os.W_OK)):
            return Finding("MLflow", f"{uri}: {folder} is no folder that can be written", mend, fatal=False)
    return Finding("MLflow", uri)
