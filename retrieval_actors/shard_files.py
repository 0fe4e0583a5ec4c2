"""Writes the files of a knowledge base: shards from chunks of passages with their vectors, and the manifest over all of them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import faiss
import numpy as np
import pyarrow as pa

from retrieval_actors.approximate_index import choose_index, make_index
from retrieval_actors.embedders import written
from retrieval_actors.flat_index_file import FlatIndexFile
from retrieval_actors.knowledge_base import FORMAT, LEXICAL, MANIFEST, SCHEMA, sha256_of
from retrieval_actors.lexical import BM25Index
from retrieval_actors.records import Passage


@contextmanager
def new_folder(folder: str | Path, aside: Path | None = None) -> Iterator[Path]:
    """A folder beside `folder`, or at `aside`, to write into, which takes its place at the end: a kill leaves no half knowledge base.

    An older knowledge base at `folder` is replaced; a folder that is something else is refused (ValueError).
    """
    folder = Path(folder)
    if folder.exists() and not (folder / MANIFEST).is_file() and any(folder.iterdir()):
        raise ValueError(f"{folder} exists and is no knowledge base: choose another folder, or remove it")
    aside = aside or folder.parent / f".{folder.name}.{os.getpid()}.new"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        yield aside
        _replace(folder, aside)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def passage_table(passages: Sequence[Passage]) -> pa.Table:
    return pa.table([pa.array([getattr(passage, field.name) for passage in passages], field.type) for field in SCHEMA], schema=SCHEMA)


def write_shard(
    folder: Path, number: int, first: int, chunks: Iterable[tuple[pa.Table, np.ndarray]], dimension: int, index: str
) -> dict[str, Any]:
    """Writes shard `number`, whose first passage is the `first` of the knowledge base, and returns its entry in the manifest.

    A chunk is a table with the columns of SCHEMA and (rows, dimension) float32 unit rows; both stream to their files. `index`: `exact`, a FAISS
    factory string, or `auto`. What an approximate index takes to be made is held in memory for one shard.
    """
    entry: dict[str, Any] = {
        "first": first,
        "passages": 0,
        "passages_file": f"passages-{number:05d}.arrow",
        "vectors_file": f"vectors-{number:05d}.faiss",
    }
    with (
        pa.OSFile(str(folder / entry["passages_file"]), "wb") as sink,
        pa.ipc.new_file(sink, SCHEMA) as writer,
        FlatIndexFile.create(folder / entry["vectors_file"], dimension) as file,
    ):
        for table, rows in chunks:
            writer.write_table(table)
            file.add(rows)
            entry["passages"] += table.num_rows
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    chosen = choose_index(entry["passages"], dimension, memory) if index == "auto" else index
    if chosen != "exact" and entry["passages"]:
        vectors = cast(faiss.IndexFlatIP, faiss.read_index(str(folder / entry["vectors_file"]), faiss.IO_FLAG_MMAP_IFC))
        stored = faiss.rev_swig_ptr(vectors.get_xb(), vectors.ntotal * dimension).reshape(-1, dimension)
        entry["index_file"], entry["index"] = f"index-{number:05d}.faiss", chosen
        entry["search"] = make_index(stored, chosen, folder / entry["index_file"])
    return entry


def write_manifest(
    folder: Path,
    *,
    name: str,
    retriever_name: str,
    description: str,
    modality: str,
    embedder: str,
    dimension: int,
    index: str,
    entries: Sequence[dict[str, Any]],
    lexical: bool = False,
) -> None:
    """kb.json over what is in the folder: the same files give the same bytes. With `lexical`, the passages are indexed by words before."""
    if lexical:
        tables = (pa.ipc.open_file(pa.memory_map(str(folder / entry["passages_file"]))).read_all() for entry in entries)
        texts = [written(Passage(**row)) for table in tables for row in table.select(["id", "title", "text"]).to_pylist()]
        BM25Index.build(texts, folder / LEXICAL)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    manifest = {
        "format": FORMAT,
        "name": name,
        "retriever_name": retriever_name,
        "description": description,
        "modality": modality,
        "embedder": embedder,
        "dimension": int(dimension),
        "metric": "inner_product",
        "index": index,
        "lexical": lexical,
        "passages": sum(entry["passages"] for entry in entries),
        "shards": list(entries),
        "files": {path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256_of(path)} for path in files},
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _replace(folder: Path, new: Path) -> None:
    """A directory cannot be renamed onto another: the older one steps aside first."""
    old = folder.parent / f".{folder.name}.{os.getpid()}.old"
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
