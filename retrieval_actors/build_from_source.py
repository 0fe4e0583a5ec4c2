"""A knowledge base of any size from a source: read and embedded chunk by chunk, then put together shard by shard."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from retrieval_actors.approximate_index import check_index_name
from retrieval_actors.build import EMBEDDERS, MODALITIES, RETRIEVER_NAMES, Progress
from retrieval_actors.build_pipeline import Workers, embed_chunks, read_parts
from retrieval_actors.embedders import check_embedder_name
from retrieval_actors.knowledge_base import SCHEMA, KnowledgeBase
from retrieval_actors.shard_files import new_folder, write_manifest, write_shard
from retrieval_actors.sources.reading import Reading
from retrieval_actors.work_folder import Chunk, ChunkSize, WorkFolder

SKIPPED = "skipped.jsonl"
FIRST_BROKEN = 5
SHARDS = 2


@dataclass(frozen=True)
class Build:
    """What is built, from what, by whom."""

    reading: Reading
    out: Path
    name: str = ""
    """Empty: the modality."""
    retriever_name: str = ""
    """Empty: by modality, as in RETRIEVER_NAMES."""
    description: str = ""
    """Empty: the name of the source."""
    modality: str = ""
    """Empty: `text_image` where any passage has a picture, else that of the source."""
    embedder: str = ""
    """Empty: by modality, as in EMBEDDERS."""
    shards: int = 0
    """0: `SHARDS`, or one where there is a single passage."""
    index: str = "auto"
    """`exact`, a FAISS factory string, or `auto`."""
    lexical: bool = False
    """Index the words too (BM25), for hybrid search."""
    skip_broken: bool = False
    """Leave broken records out and list them, instead of refusing the first."""
    workers: Workers = field(default_factory=Workers)
    chunk_size: ChunkSize = field(default_factory=ChunkSize)


@dataclass(frozen=True)
class Built:
    base: KnowledgeBase
    broken: int
    """Records that were skipped; all are listed in skipped.jsonl."""
    first_broken: tuple[str, ...]
    """A JSON line for each of the first few."""
    left_out: int
    """Records without a passage: left out on purpose, or empty."""
    chunks: int
    resumed_chunks: int
    """Chunks that an earlier, interrupted build had embedded."""
    embedded: int
    """Passages that this one embedded."""
    seconds: dict[str, float]
    """Wall-clock seconds of `reading`, `embedding` and `shards`."""


def build_from_source(build: Build, progress: Progress | None = None, say: Callable[[str], None] = lambda line: None) -> Built:
    """Builds the folder, or goes on with a build of it that was interrupted. Ray has to be running.

    `say` is told in a line what is found of an earlier build. Raises ValueError, one line, for a broken record (unless skipped), for ids
    that are not unique, for a setting that does not fit, and for a model that cannot be loaded; OSError for files that are not there.
    """
    _check(build)
    clock = _Clock()
    with WorkFolder.beside(build.out, plan_of(build)) as (work, found):
        if found:
            say(found)
        chunks = read_parts(work, build.reading, build.skip_broken, build.chunk_size, progress)
        clock.lap("reading")
        total = sum(chunk.passages for chunk in chunks)
        shards = build.shards or max(1, min(SHARDS, total))
        if build.shards > total:
            raise ValueError(
                f"shards={build.shards}: {build.reading.path} has {total} passages; expected at most as many shards: shards={total}"
            )
        parts = range(len(build.reading.parts()))
        summaries = [work.part_summary(part) for part in parts]
        pictures = any(summary["pictures"] for summary in summaries)
        modality = build.modality or ("text_image" if pictures else build.reading.source.modality)
        embedder = build.embedder or EMBEDDERS[modality]
        # An index that cannot be made is refused after the first chunk, not after the last.
        resumed = embed_chunks(work, chunks, embedder, build.workers, progress, lambda found: check_index_name(build.index, found))
        clock.lap("embedding")
        dimension = work.vectors(chunks[0]).shape[1]
        broken = (line for part in parts for line in work.broken(part))
        with new_folder(build.out, work.new_folder) as aside:
            first_broken = tuple(_write_skipped(aside / SKIPPED, broken))
            bounds = [total * number // shards for number in range(shards + 1)]
            entries = []
            for number, (first, last) in enumerate(itertools.pairwise(bounds)):
                entries.append(write_shard(aside, number, first, _slices(work, chunks, first, last), dimension, build.index))
                if progress:
                    progress("shards", number + 1, shards)
            write_manifest(
                aside,
                name=build.name or modality,
                retriever_name=build.retriever_name or RETRIEVER_NAMES[modality],
                description=build.description or f"passages from {build.reading.path.name}",
                modality=modality,
                embedder=embedder,
                dimension=dimension,
                index=build.index,
                entries=entries,
                lexical=build.lexical,
            )
        clock.lap("shards")
    return Built(
        base=KnowledgeBase.open(build.out, verify=False),
        broken=sum(summary["broken"] for summary in summaries),
        first_broken=first_broken,
        left_out=sum(summary["left_out"] for summary in summaries),
        chunks=len(chunks),
        resumed_chunks=resumed.chunks,
        embedded=total - resumed.passages,
        seconds=clock.seconds,
    )


def _check(build: Build) -> None:
    """What can be refused before anything is read."""
    if build.modality and build.modality not in MODALITIES:
        raise ValueError(f"modality={build.modality}: use one of {', '.join(MODALITIES)}")
    if build.shards < 0:
        raise ValueError(f"shards={build.shards}: at least 1, or 0 for as many as fit")
    if build.embedder:
        check_embedder_name(build.embedder)


def plan_of(build: Build) -> dict[str, Any]:
    """All that decides which chunks there are and what their vectors are: where it differs, nothing of an earlier build can be used."""
    return {
        **build.reading.described(),
        "modality": build.modality,
        "embedder": build.embedder,
        "on_error": "skip" if build.skip_broken else "fail",
        "chunk_size": [build.chunk_size.passages, build.chunk_size.bytes],
    }


def _slices(work: WorkFolder, chunks: list[Chunk], first: int, last: int) -> Iterator[tuple[pa.Table, np.ndarray]]:
    """The passages from position `first` up to `last` and their vectors, chunk by chunk, memory-mapped."""
    position = 0
    for chunk in chunks:
        begin, end = max(first - position, 0), min(last - position, chunk.passages)
        position += chunk.passages
        if begin < end:
            yield work.passages(chunk).select(SCHEMA.names).slice(begin, end - begin), work.vectors(chunk)[begin:end]


def _write_skipped(path: Path, lines: Iterator[str]) -> Iterator[str]:
    """Writes the lines, if there are any; yields the first few."""
    first = next(lines, None)
    if first is None:
        return
    with path.open("w", encoding="utf-8") as file:
        for number, line in enumerate(itertools.chain([first], lines)):
            file.write(line)
            if number < FIRST_BROKEN:
                yield line


class _Clock:
    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, what: str) -> None:
        now = time.perf_counter()
        self.seconds[what], self._last = now - self._last, now
