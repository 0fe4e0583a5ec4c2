"""Builds a knowledge base folder from passages in memory, and writes its files: shards, lexical index, manifest."""

import itertools
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from retrieval_actors.embedders.registry import build_embedder
from retrieval_actors.folder_lock import replace_folder
from retrieval_actors.index.approximate import check_index_name, choose_index, make_index
from retrieval_actors.index.bm25 import BM25Index
from retrieval_actors.knowledge_base import CARD_KEYS, FORMAT, LEXICAL, MANIFEST, SCHEMA, KnowledgeBase, read_arrow, sha256_of
from retrieval_actors.records import Passage

Progress = Callable[[str, int, int], None]  # called with (what is being done, how many are done, how many in all)
RETRIEVER_NAMES = {"text": "Text Retriever", "text_image": "Text Image Retriever", "table": "Table Retriever"}  # by modality
EMBEDDERS = {"text": "minilm", "text_image": "colour-layout+minilm", "table": "minilm"}  # modality -> default embedder
PASSAGES_AT_ONCE = 512
PASSAGES_PER_SHARD = 100_000  # by default, at most: each is a process of its own then, which takes a second of a CPU to start
SKIPPED = "skipped.jsonl"
Chunk = tuple[pa.Table, np.ndarray]  # a table with the columns of SCHEMA, and the (rows, dimension) float32 unit vectors of its rows


def build_knowledge_base(
    passages: Iterable[Passage], folder: str | Path, *, embedder_name: str, progress: Progress | None = None, **options: Any
) -> KnowledgeBase:
    """Embeds the passages and writes the folder; `options`: those of `write_knowledge_base`. Raises ValueError, also for a broken picture."""
    passages = list(passages)
    embedder = build_embedder(embedder_name)
    vectors = np.zeros((len(passages), embedder.dimension), np.float32)
    for start in range(0, len(passages), PASSAGES_AT_ONCE):
        rows = slice(start, min(start + PASSAGES_AT_ONCE, len(passages)))
        vectors[rows] = embedder.embed_passages(passages[rows])
        if progress:
            progress(f"embedding {options['name']}", rows.stop, len(passages))
    return write_knowledge_base(folder, passages=passages, vectors=vectors, embedder=embedder_name, **options)


def write_knowledge_base(folder: str | Path, *, passages: Sequence[Passage], vectors: np.ndarray, **options: Any) -> KnowledgeBase:
    """Writes passages and their (passages, dimension) float32 unit vectors; `options`: those of `write_folder`. Raises ValueError for equal ids."""
    if vectors.ndim != 2 or len(vectors) != len(passages):
        raise ValueError(f"knowledge base {options['name']!r}: vectors of shape {vectors.shape} for {len(passages)} passages")
    [(most_common, count)] = Counter(passage.id for passage in passages).most_common(1) or [("", 0)]
    if count > 1:
        raise ValueError(f"passage id {most_common!r} occurs twice: ids must be unique within a knowledge base")

    def chunks_of(first: int, last: int) -> Iterable[Chunk]:
        return [(passage_table(passages[first:last]), vectors[first:last])]

    return write_folder(Path(folder), len(passages), chunks_of, dimension=vectors.shape[1], **options)


def write_folder(
    folder: Path,
    passages: int,
    chunks_of: Callable[[int, int], Iterable[Chunk]],
    *,
    dimension: int,
    shards: int = 0,
    index: str = "auto",
    lexical: bool = False,
    aside: Path | None = None,
    skipped: str = "",
    progress: Progress | None = None,
    **card: str,
) -> KnowledgeBase:
    """Writes to a temporary folder, `aside`, and renames it to `folder` at the end: a kill leaves no half-written folder.
    `chunks_of(first, last)`: the passages at positions [first, last). `skipped`: content of skipped.jsonl. `card`: name, retriever_name,
    description, modality and embedder. `shards` 0: by size. Raises ValueError for a wrong setting, and if `folder` holds anything else."""
    check_index_name(index, dimension)
    shards = shards or shards_for(passages)
    if folder.exists() and not (folder / MANIFEST).is_file() and any(folder.iterdir()):
        raise ValueError(f"{folder} exists and is no knowledge base: choose another folder, or remove it")
    aside = aside or folder.parent / f".{folder.name}.{os.getpid()}.new"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        if skipped:
            (aside / SKIPPED).write_text(skipped, encoding="utf-8")
        bounds = [passages * number // shards for number in range(shards + 1)]
        entries = []
        for number, (first, last) in enumerate(itertools.pairwise(bounds)):
            entries.append(_write_shard(aside, number, (first, last), chunks_of(first, last), dimension, index))
            if progress:
                progress("shards", number + 1, shards)
        if lexical:
            tables = (read_arrow(aside / entry["passages_file"]).select(["id", "title", "text"]) for entry in entries)
            BM25Index.build([Passage(**row).full_text for table in tables for row in table.to_pylist()], aside / LEXICAL)
        files = sorted(path for path in aside.rglob("*") if path.is_file())
        manifest = {
            "format": FORMAT,
            **{key: card[key] for key in CARD_KEYS},
            "dimension": dimension,
            "index": index,
            "lexical": lexical,
            "passages": passages,
            "shards": entries,
            "files": {path.relative_to(aside).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256_of(path)} for path in files},
        }
        (aside / MANIFEST).write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        replace_folder(folder, aside)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return KnowledgeBase.open(folder, verify=False)


def shards_for(passages: int) -> int:
    return max(1, -(-passages // PASSAGES_PER_SHARD))


def passage_table(passages: Sequence[Passage]) -> pa.Table:
    return pa.table([pa.array([getattr(passage, field.name) for passage in passages], field.type) for field in SCHEMA], schema=SCHEMA)


def _write_shard(folder: Path, number: int, bounds: tuple[int, int], chunks: Iterable[Chunk], dimension: int, index: str) -> dict[str, Any]:
    """Writes shard `number`, the passages at positions [first, last) = `bounds`, and returns its entry in the manifest."""
    first, last = bounds
    files = {"passages_file": f"passages-{number:05d}.arrow", "vectors_file": f"vectors-{number:05d}.npy"}
    entry: dict[str, Any] = {"first": first, "passages": last - first, **files}
    vectors = np.lib.format.open_memmap(folder / files["vectors_file"], "w+", np.float32, (last - first, dimension))
    done = 0
    with pa.OSFile(str(folder / files["passages_file"]), "wb") as sink, pa.ipc.new_file(sink, SCHEMA) as writer:
        for table, rows in chunks:
            norms = np.linalg.norm(rows, axis=1)
            if not np.all((np.abs(norms - 1) < 1e-3) | (norms == 0)):  # NaN is refused as well
                raise ValueError(f"vectors must be unit rows, or zero, norms are {norms.min():.4f} to {norms.max():.4f}")
            writer.write_table(table)
            vectors[done : done + len(rows)] = rows
            done += len(rows)
    vectors.flush()
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    chosen = choose_index(last - first, dimension, memory) if index == "auto" else index
    if chosen != "exact" and last > first:
        entry["index_file"], entry["index"] = f"index-{number:05d}.faiss", chosen
        entry["search"] = make_index(vectors, chosen, folder / entry["index_file"])
    return entry
