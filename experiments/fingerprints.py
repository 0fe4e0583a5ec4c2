"""`fingerprints.json` of a run folder: what the run was made of, so that nobody compares apples with pears."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from experiments.datasets import Dataset
from experiments.provenance import git_commit, machine
from rollout.records import Image

FILE = "fingerprints.json"
YOUNGER = frozenset({"answer_range"})
"""Fields that records did not have from the beginning: where they say nothing, a fingerprint is what it was before."""


def fingerprint(items: Iterable[Any]) -> str:
    """16 hex digits of all that questions or recorded turns say, in their order; pictures by their key, which is a hash of their bytes."""
    digest = hashlib.sha256()
    for item in items:
        digest.update(json.dumps(_plain(item), ensure_ascii=False, sort_keys=True).encode())
        digest.update(b"\n")
    return digest.hexdigest()[:16]


def write_fingerprints(folder: Path, dataset_name: str, dataset: Dataset, kbs: Mapping[str, Mapping[str, str]]) -> None:
    """`kbs`: `training` and `evaluation` -> knowledge base -> hash of its content."""
    splits = {"training": dataset.train, "validation": dataset.validation, "heldout": dataset.heldout}
    content = {
        "dataset": {
            "name": dataset_name,
            "splits": {name: {"questions": len(items), "fingerprint": fingerprint(items)} for name, items in splits.items()},
        },
        "knowledge_bases": {split: dict(sorted(found.items())) for split, found in kbs.items()},
        "git_commit": git_commit(),
        "machine": machine(),
    }
    (folder / FILE).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_fingerprints(folder: Path) -> dict[str, Any]:
    """Empty for a run that has not written them (yet)."""
    file = folder / FILE
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def _plain(value: Any) -> Any:
    if isinstance(value, Image):
        return value.key
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        said = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return {name: _plain(found) for name, found in said.items() if found is not None or name not in YOUNGER}
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value
