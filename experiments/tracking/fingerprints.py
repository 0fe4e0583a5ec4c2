"""Provenance of results: `fingerprints.json` (hashes of questions and knowledge bases), the commit, and the machine."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.config import REPOSITORY
from experiments.tracking.heartbeat import read_json
from retrieval_actors.records import KnowledgeBaseCard
from rollout.records import GoldStep, Image

if TYPE_CHECKING:
    from experiments.datasets import Dataset  # brings FAISS

FILE = "fingerprints.json"
ONLY_IF_SET = frozenset({"answer_range", "fault", "image_first"})  # hashes from before these fields existed stay valid


def fingerprint(items: Iterable[Any]) -> str:
    """16 hex digits of questions or recorded turns, in their order; a picture counts by its key, a hash of its bytes."""
    digest = hashlib.sha256()
    for item in items:
        digest.update(f"{json.dumps(_plain(item), ensure_ascii=False, sort_keys=True)}\n".encode())
    return digest.hexdigest()[:16]


def write_fingerprints(folder: Path, dataset_name: str, dataset: Dataset, catalogs: Mapping[str, Sequence[KnowledgeBaseCard]]) -> None:
    """`catalogs`: the knowledge bases of `training` and of `evaluation`."""
    splits = {"training": dataset.train, "validation": dataset.validation, "heldout": dataset.heldout}
    prints = {name: {"questions": len(items), "fingerprint": fingerprint(items)} for name, items in splits.items()}
    bases = {split: dict(sorted((card.name, card.fingerprint) for card in cards)) for split, cards in catalogs.items()}
    content = {"dataset": {"name": dataset_name, "splits": prints}, "knowledge_bases": bases}
    content |= {"git_commit": git_commit(), "machine": machine()}
    (folder / FILE).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_fingerprints(folder: Path) -> dict[str, Any]:
    """Contents of `fingerprints.json`; empty if it is missing."""
    return read_json(folder / FILE)


def git_commit() -> str | None:
    """The commit of this repository, with `+changes` where files differ from it; None without git."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=True, timeout=30).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def machine() -> dict[str, Any]:
    """Hardware and versions that timings depend on; no host name."""
    import psutil
    import torch

    memory, gpus = round(psutil.virtual_memory().total / 2**30), [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    found = {"cpus": os.cpu_count(), "processor": platform.processor() or platform.machine(), "memory_gib": memory, "gpus": gpus}
    return found | {"python": platform.python_version(), "torch": torch.__version__}


def _plain(value: Any) -> Any:
    if isinstance(value, Image):
        return value.key
    if isinstance(value, GoldStep):  # hashes from before several knowledge bases could be right stay valid, too
        return {"query": value.query, "kb": " or ".join(value.kbs), "answer": value.answer, "entities": _plain(value.entities)}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return {name: _plain(found) for name, found in fields.items() if found or name not in ONLY_IF_SET}
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value
