"""From passages to a knowledge base folder."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa

from retrieval_actors.embedders import build_embedder
from retrieval_actors.knowledge_base import FORMAT, MANIFEST, SCHEMA, KnowledgeBase, sha256_of
from retrieval_actors.records import Passage

Progress = Callable[[str, int, int], None]
"""Is told what is being done, how many are done, and of how many."""
MODALITIES = ("text", "text_image", "table")
PASSAGES_AT_ONCE = 512


def build_knowledge_base(
    passages: Iterable[Passage],
    folder: str | Path,
    *,
    name: str,
    retriever_name: str,
    description: str,
    modality: str,
    embedder_name: str,
    shards: int = 2,
    progress: Progress | None = None,
) -> KnowledgeBase:
    """Embeds the passages and writes the folder. Raises ValueError for an unknown embedder, for equal ids, or for a broken picture."""
    passages = list(passages)
    _check(passages, modality, shards)
    embedder = build_embedder(embedder_name)
    vectors = np.zeros((len(passages), embedder.dimension), np.float32)
    # Passages of like length share a batch; the vectors do not depend on it.
    by_length = sorted(range(len(passages)), key=lambda row: len(passages[row].text))
    for start in range(0, len(passages), PASSAGES_AT_ONCE):
        rows = by_length[start : start + PASSAGES_AT_ONCE]
        vectors[rows] = embedder.embed_passages([passages[row] for row in rows])
        if progress:
            progress(f"embedding {name}", start + len(rows), len(passages))
    return write_knowledge_base(
        folder,
        name=name,
        retriever_name=retriever_name,
        description=description,
        modality=modality,
        embedder=embedder_name,
        passages=passages,
        vectors=vectors,
        shards=shards,
    )


def write_knowledge_base(
    folder: str | Path,
    *,
    name: str,
    retriever_name: str,
    description: str,
    modality: str,
    embedder: str,
    passages: Sequence[Passage],
    vectors: np.ndarray,
    shards: int = 2,
) -> KnowledgeBase:
    """Writes passages and their (passages, dimension) float32 unit vectors beside `folder` and renames: a kill leaves no half folder.

    An older knowledge base at `folder` is replaced; a folder that is something else is refused (ValueError).
    """
    folder = Path(folder)
    _check(passages, modality, shards)
    if vectors.ndim != 2 or len(vectors) != len(passages):
        raise ValueError(f"knowledge base {name!r}: vectors of shape {vectors.shape} for {len(passages)} passages")
    norms = np.linalg.norm(vectors, axis=1)
    if not np.all((np.abs(norms - 1) < 1e-3) | (norms == 0)):
        raise ValueError(f"knowledge base {name!r}: vectors must be unit rows, norms are {norms.min():.4f} to {norms.max():.4f}")
    if folder.exists() and not (folder / MANIFEST).is_file() and any(folder.iterdir()):
        raise ValueError(f"{folder} exists and is no knowledge base: choose another folder, or remove it")
    aside = folder.parent / f".{folder.name}.{os.getpid()}.new"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        bounds = [len(passages) * number // shards for number in range(shards + 1)]
        entries = []
        for number, (first, last) in enumerate(itertools.pairwise(bounds)):
            passages_file, index_file = f"passages-{number:05d}.arrow", f"index-{number:05d}.faiss"
            _write_passages(aside / passages_file, passages[first:last])
            _write_index(aside / index_file, vectors[first:last])
            entries.append({"first": first, "passages": last - first, "passages_file": passages_file, "index_file": index_file})
        manifest = {
            "format": FORMAT,
            "name": name,
            "retriever_name": retriever_name,
            "description": description,
            "modality": modality,
            "embedder": embedder,
            "dimension": int(vectors.shape[1]),
            "metric": "inner_product",
            "index": "flat",
            "passages": len(passages),
            "shards": entries,
            "files": {path.name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)} for path in sorted(aside.iterdir())},
        }
        (aside / MANIFEST).write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        _replace(folder, aside)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return KnowledgeBase.open(folder, verify=False)


def _check(passages: Sequence[Passage], modality: str, shards: int) -> None:
    if modality not in MODALITIES:
        raise ValueError(f"modality {modality!r}: use one of {', '.join(MODALITIES)}")
    if shards < 1:
        raise ValueError(f"shards = {shards}: at least 1")
    seen: set[str] = set()
    for passage in passages:
        if passage.id in seen:
            raise ValueError(f"passage id {passage.id!r} occurs twice: ids must be unique within a knowledge base")
        seen.add(passage.id)


def _write_passages(path: Path, passages: Sequence[Passage]) -> None:
    columns = [pa.array([getattr(passage, field.name) for passage in passages], field.type) for field in SCHEMA]
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, SCHEMA) as writer:
        writer.write_batch(pa.record_batch(columns, schema=SCHEMA))


def _write_index(path: Path, vectors: np.ndarray) -> None:
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(np.ascontiguousarray(vectors, np.float32))
    faiss.write_index(index, str(path))


def _replace(folder: Path, new: Path) -> None:
    """A directory cannot be renamed onto another: the older one steps aside first."""
    old = folder.parent / f".{folder.name}.{os.getpid()}.old"
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
