"""Builds a knowledge base folder from a source of any size: Ray Data reads and embeds it chunk by chunk, then the shards are written.

Everything is read before anything is embedded: reading takes minutes and embedding hours, so a broken record or a repeated id shows early.
"""

import functools
import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import NonNegativeInt, PositiveInt

from retrieval_actors.build.from_passages import EMBEDDERS, RETRIEVER_NAMES, Progress, shards_for, write_folder
from retrieval_actors.build.work_folder import CHUNK_BYTES, Chunk, WorkFolder
from retrieval_actors.embedders.embedder import Embedder
from retrieval_actors.embedders.registry import build_embedder
from retrieval_actors.index.approximate import check_index_name
from retrieval_actors.knowledge_base import SCHEMA, KnowledgeBase
from retrieval_actors.records import Passage
from retrieval_actors.sources.data_files import DataError
from retrieval_actors.sources.read_passages import Reading


@dataclass
class BuildSettings:
    source: str = "auto"
    """Which form SOURCE has: a name from the table in docs/05_knowledge_bases.md, or MODULE:CLASS."""
    name: str = ""
    """Name in configurations; empty: its modality."""
    retriever_name: str = ""
    """Name in the policy's plan turns; empty: by modality, "Text Retriever" and so on."""
    description: str = ""
    """One sentence for the prompt; empty: the name of the source."""
    modality: Literal["", "text", "text_image", "table"] = ""
    """Empty: `text_image` if any passage has a picture, else that of the source."""
    embedder: str = ""
    """Empty: `colour-layout+minilm` for `text_image`, else `minilm`."""
    shards: NonNegativeInt = 0
    """0: one for every 100,000 passages."""
    index: str = "auto"
    """`exact`, a FAISS factory string, or `auto`, by the size of a shard."""
    lexical: bool = False
    """Add a lexical index (BM25), for hybrid search."""
    window_words: int = 0
    """Split longer texts into windows of this many words; 0: do not split."""
    window_stride: int = 0
    """Words from the start of a window to the start of the next; 0: half a window."""
    limit: NonNegativeInt = 0
    """Records taken from the source; 0: all."""
    chunk_passages: PositiveInt = 2048
    """Passages embedded at once, at most: a kill loses a chunk of each worker."""
    on_error: Literal["fail", "skip"] = "fail"
    """What to do with a broken record: `fail`, or `skip` and list it."""
    workers: int = 1
    """Processes that embed, each with the model in it."""
    threads: int = 0
    """CPU threads of each; 0: all CPUs shared among them."""
    gpus_per_worker: float = 0.0
    """GPUs that Ray reserves for each."""


@dataclass(frozen=True)
class Built:
    base: KnowledgeBase
    broken: list[dict[str, str]]  # place and reason of each record in skipped.jsonl
    left_out: list[str]  # FILE:LINE of each record without a passage: left out on purpose, or empty
    chunks: int
    resumed_chunks: int  # those that an earlier, interrupted build had embedded
    embedded: int  # passages that this one embedded
    embedding_seconds: float


def work_plan(reading: Reading, settings: BuildSettings) -> dict[str, Any]:
    """All that decides the chunks and their vectors: with another plan, an earlier build cannot be continued."""
    own = {key: getattr(settings, key) for key in ("modality", "embedder", "on_error")}
    return {**reading.described(), **own, "chunk_size": [settings.chunk_passages, CHUNK_BYTES]}


def build_from_source(
    reading: Reading,
    out: Path,
    settings: BuildSettings,
    progress: Progress = lambda *_: None,
    note: Callable[[str], None] = lambda line: None,
) -> Built:
    """Builds the folder, or continues an interrupted build of it; `note` is called with one line about that. Ray has to be running.
    Raises ValueError, one line, for a broken record (unless skipped), equal ids, a setting that does not fit, and an unavailable model."""
    with WorkFolder.beside(out, work_plan(reading, settings)) as (work, found):
        if found:
            note(found)
        chunks = read_parts(work, reading, settings, progress)
        total = sum(chunk.passages for chunk in chunks)
        shards = settings.shards or shards_for(total)
        if settings.shards > total:
            raise ValueError(f"shards={shards}: {reading.path} has {total} passages; expected at most as many shards: shards={total}")
        summaries = [work.part_summary(part) for part in range(len(reading.parts()))]
        broken = [record for summary in summaries for record in summary["broken"]]
        pictures = any(summary["pictures"] for summary in summaries)
        modality = settings.modality or ("text_image" if pictures else reading.source.modality)
        embedder = settings.embedder or EMBEDDERS[modality]
        resumed = [chunk for chunk in chunks if work.is_embedded(chunk)]
        started, dimension = time.perf_counter(), 0
        for done in embed_chunks(work, chunks, embedder, settings):
            if done and not dimension:  # a wrong index is refused after the first chunk, not after the last
                dimension = next(work.vectors(chunk).shape[1] for chunk in chunks if work.is_embedded(chunk))
                check_index_name(settings.index, dimension)
            progress("embedding", done, total)
        embedding_seconds = time.perf_counter() - started
        skipped = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in broken)
        card: dict[str, Any] = {"name": settings.name or modality, "retriever_name": settings.retriever_name or RETRIEVER_NAMES[modality]}
        card |= {"description": settings.description or f"passages from {reading.path.name}", "modality": modality, "embedder": embedder}
        index: dict[str, Any] = {"dimension": dimension, "shards": shards, "index": settings.index, "lexical": settings.lexical}
        slices = functools.partial(_slices, work, chunks)
        base = write_folder(out, total, slices, **card, **index, aside=work.path / "new", skipped=skipped, progress=progress)
    left_out = [place for summary in summaries for place in summary["left_out"]]
    embedded = total - sum(chunk.passages for chunk in resumed)
    return Built(base, broken, left_out, len(chunks), len(resumed), embedded, embedding_seconds)


def read_parts(work: WorkFolder, reading: Reading, settings: BuildSettings, progress: Progress) -> list[Chunk]:
    """Reads the missing parts, and returns all chunks in order. Raises DataError for a broken record, unless skipped, and for equal ids."""
    parts = reading.parts()

    def read(row: dict[str, int]) -> Iterator[dict[str, Any]]:
        part = row["part"]
        return _outcomes(work.read_part(part, parts[part], reading, settings.on_error == "skip", settings.chunk_passages))

    done = 0
    for passages in _run([{"part": part} for part in range(len(parts)) if not work.is_read(part)], read):
        done += passages
        progress("reading", done, 0)
    counts = [(part, number, passages) for part in range(len(parts)) for number, passages in enumerate(work.part_summary(part)["chunks"])]
    if not counts:
        raise DataError(f"{reading.path}: no passages in it; expected {reading.source.form}")
    chunks = [Chunk(*count) for count in counts]
    ids = pa.concat_tables([work.passages(chunk).select(["id", "place"]) for chunk in chunks])
    occurrences = pc.value_counts(ids["id"].cast(pa.large_string()))
    repeated = occurrences.filter(pc.greater(occurrences.field("counts"), 1))
    if len(repeated):
        own_id = repeated.field("values")[0]
        first, second, *_ = ids.filter(pc.equal(ids["id"], own_id.as_py()))["place"].to_pylist()
        raise DataError(f"{second}: id {own_id.as_py()!r} occurs before, at {first}: ids must be unique within a knowledge base")
    return chunks


def embed_chunks(work: WorkFolder, chunks: Sequence[Chunk], embedder_name: str, settings: BuildSettings) -> Iterator[int]:
    """Embeds the chunks that have no vectors yet, in a pool of actors. Yields the number of passages with vectors, earlier builds included."""
    import ray.data

    workers, cpus = settings.workers, int(ray.cluster_resources().get("CPU", 1))
    if not 1 <= workers <= cpus:
        raise ValueError(f"workers={workers}: expected 1 to {cpus}, the CPUs that Ray has here")
    missing = [chunk for chunk in chunks if not work.is_embedded(chunk)]
    done = sum(chunk.passages for chunk in chunks) - sum(chunk.passages for chunk in missing)
    yield done
    pool = ray.data.ActorPoolStrategy(size=workers)
    arguments, gpus = (work, embedder_name, settings.threads or max(1, cpus // workers)), settings.gpus_per_worker
    for passages in _run([asdict(chunk) for chunk in missing], EmbedChunk, fn_constructor_args=arguments, compute=pool, num_gpus=gpus):
        done += passages
        yield done


class EmbedChunk:
    """An actor of the pool: loads the embedder once, and writes the vectors of the chunks that it gets."""

    def __init__(self, work: WorkFolder, embedder_name: str, threads: int):
        self._work, self._name, self._threads = work, embedder_name, threads

    def __call__(self, row: dict[str, int]) -> Iterator[dict[str, Any]]:
        return _outcomes(self._embed(Chunk(**row)))

    @cached_property
    def _embedder(self) -> Embedder:
        return build_embedder(self._name, self._threads)

    def _embed(self, chunk: Chunk) -> Iterator[int]:
        stored = self._work.passages(chunk).drop_columns(["place"]).to_pylist()
        self._work.write_vectors(chunk, self._embedder.embed_passages([Passage(**row) for row in stored]))
        yield chunk.passages


def _outcomes(counts: Iterator[int]) -> Iterator[dict[str, Any]]:
    """One row per count of passages. An error becomes a row, too: so the driver gets its message without Ray's traceback."""
    try:
        for passages in counts:
            yield {"passages": passages, "error": ""}
    except (ValueError, OSError) as error:
        yield {"passages": 0, "error": " ".join(str(error).split()) or type(error).__name__}


def _run(rows: list[dict[str, int]], stage: Any, **options: Any) -> Iterator[int]:
    """Runs `stage` on every row, in tasks or actors with one CPU each, and yields its counts of passages. Raises ValueError."""
    if not rows:
        return
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # Blocks of one row: otherwise rows arrive only when a stage has filled a block of megabytes.
    context.target_max_block_size = 1
    with ray.data.DataContext.current(context):
        for row in ray.data.from_items(rows, override_num_blocks=len(rows)).flat_map(stage, num_cpus=1, **options).iter_rows():
            if row["error"]:
                raise ValueError(row["error"])
            yield row["passages"]


def _slices(work: WorkFolder, chunks: list[Chunk], first: int, last: int) -> Iterator[tuple[pa.Table, np.ndarray]]:
    """The passages from position `first` up to `last` and their vectors, chunk by chunk, memory-mapped."""
    position = 0
    for chunk in chunks:
        begin, end = max(first - position, 0), min(last - position, chunk.passages)
        position += chunk.passages
        if begin < end:
            yield work.passages(chunk).select(SCHEMA.names).slice(begin, end - begin), work.vectors(chunk)[begin:end]
