"""The two stages of a build that take time, as Ray Data pipelines: read, normalise, split -> chunks; chunks -> vectors.

Everything is read before anything is embedded: reading takes minutes where embedding takes hours, and neither a broken record nor an id
that occurs twice should be found out at the end of those. What passes between the stages are chunks in a work folder, so that memory
holds a chunk for each worker, and a build that was killed goes on where it was.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from retrieval_actors.build import Progress
from retrieval_actors.embedders import Embedder, build_embedder, check_embedder_name
from retrieval_actors.equal_ids import first_equal_ids
from retrieval_actors.records import Passage
from retrieval_actors.sources.reading import Reading
from retrieval_actors.sources.source import SourceError
from retrieval_actors.work_folder import Chunk, ChunkSize, WorkFolder


@dataclass(frozen=True)
class Resumed:
    """What an earlier, interrupted build had embedded."""

    chunks: int
    passages: int


@dataclass(frozen=True)
class Workers:
    """Who embeds."""

    count: int = 1
    """Processes, each with the model in it."""
    threads: int = 0
    """CPU threads of each; 0: the CPUs shared out among them."""
    gpus: float = 0.0
    """GPUs that Ray reserves for each."""


def read_parts(work: WorkFolder, reading: Reading, skip_broken: bool, size: ChunkSize, progress: Progress | None) -> list[Chunk]:
    """Reads what is not read yet, and returns all chunks in order. Raises SourceError for a broken record, if not skipped, and for equal ids."""
    parts = reading.parts()
    missing = [{"part": part} for part, _ in enumerate(parts) if not work.is_read(part)]
    done = 0
    for row in _rows(missing, _ReadPart(work, reading, parts, skip_broken, size)):
        done += row["passages"]
        if progress:
            progress("reading", done, 0)
    chunks = [
        Chunk(part, number, passages) for part, _ in enumerate(parts) for number, passages in enumerate(work.part_summary(part)["chunks"])
    ]
    if not chunks:
        raise SourceError(f"{reading.path}: no passages in it; expected {reading.source.form}")
    if equal := first_equal_ids(lambda: (work.passages(chunk).select(["id", "place"]) for chunk in chunks)):
        raise SourceError(f"{equal[2]}: id {equal[0]!r} occurs before, at {equal[1]}: ids must be unique within a knowledge base")
    return chunks


def embed_chunks(
    work: WorkFolder,
    chunks: list[Chunk],
    embedder_name: str,
    workers: Workers,
    progress: Progress | None = None,
    check_dimension: Callable[[int], None] = lambda dimension: None,
) -> Resumed:
    """Embeds the chunks that have no vectors yet, and returns what had. Raises ValueError when a passage or the model is refused.

    `check_dimension` is asked once, with the dimension of the first vectors that there are, and may raise.
    """
    import ray

    check_embedder_name(embedder_name)
    cpus = int(ray.cluster_resources().get("CPU", 1))
    if not 1 <= workers.count <= cpus:
        raise ValueError(f"workers={workers.count}: expected 1 to {cpus}, the CPUs that Ray has here")
    missing = [chunk for chunk in chunks if not work.is_embedded(chunk)]
    total = sum(chunk.passages for chunk in chunks)
    done = total - sum(chunk.passages for chunk in missing)
    resumed = Resumed(len(chunks) - len(missing), done)
    if progress:
        progress("embedding", done, total)
    rows = [{"part": chunk.part, "number": chunk.number, "passages": chunk.passages} for chunk in missing]
    threads = workers.threads or max(1, cpus // workers.count)
    checked = False
    for row in itertools.chain([{"passages": 0}] if done else [], _rows(rows, EmbedChunk, (work, embedder_name, threads), workers)):
        done += row["passages"]
        if not checked:
            check_dimension(next(work.vectors(chunk).shape[1] for chunk in chunks if work.is_embedded(chunk)))
            checked = True
        if progress:
            progress("embedding", done, total)
    return resumed


class EmbedChunk:
    """An actor of the pool: holds the embedder, and writes the vectors of the chunks that it is given."""

    def __init__(self, work: WorkFolder, embedder_name: str, threads: int):
        self._work, self._name, self._threads = work, embedder_name, threads
        self._embedder: Embedder | None = None

    def __call__(self, batch: dict[str, np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
        for part, number, passages in zip(batch["part"], batch["number"], batch["passages"], strict=True):
            chunk = Chunk(int(part), int(number), int(passages))
            with _refusals() as refusal:
                if self._embedder is None:
                    self._embedder = build_embedder(self._name, self._threads)
                stored = self._work.passages(chunk).drop_columns(["place"]).to_pylist()
                self._work.write_vectors(chunk, self._embedder.embed_passages([Passage(**row) for row in stored]))
            yield _row(chunk.passages, refusal)


class _ReadPart:
    """Reads parts of the source into chunks: a row goes out for each chunk that is written."""

    def __init__(self, work: WorkFolder, reading: Reading, parts: list[list[Path]], skip_broken: bool, size: ChunkSize):
        self._work, self._reading, self._parts, self._skip_broken, self._size = work, reading, parts, skip_broken, size

    def __call__(self, batch: dict[str, np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
        for part in batch["part"]:
            with _refusals() as refusal:
                for passages in self._work.read_part(int(part), self._parts[part], self._reading, self._skip_broken, self._size):
                    yield _row(passages, [])
            if refusal:
                yield _row(0, refusal)


@contextmanager
def _refusals() -> Iterator[list[str]]:
    """A record or model that is refused is news for the user, not a failure of the process: it travels as a row, in one line."""
    said: list[str] = []
    try:
        yield said
    except (ValueError, OSError) as error:
        said.append(" ".join(str(error).split()) or type(error).__name__)


def _row(passages: int, refusal: list[str]) -> dict[str, np.ndarray]:
    return {"passages": np.array([passages]), "refusal": np.array(["".join(refusal)])}


def _rows(
    rows: list[dict[str, int]], stage: Any, arguments: tuple[Any, ...] = (), workers: Workers | None = None
) -> Iterator[dict[str, Any]]:
    """What `stage` yields for the rows, as soon as it yields it: a function in Ray tasks, or, with `workers`, a class in a pool of actors.

    Raises ValueError with the first refusal.
    """
    if not rows:
        return
    import ray.data
    from ray.data import ActorPoolStrategy, DataContext

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # Blocks of one row: what a stage yields is seen when it is yielded, not when the stage has filled a block of megabytes.
    context.target_max_block_size = 1
    options: dict[str, Any] = {"num_cpus": 1}
    if workers:
        pool = ActorPoolStrategy(size=workers.count)
        options = {"num_cpus": 1, "num_gpus": workers.gpus, "compute": pool, "fn_constructor_args": arguments}
    with DataContext.current(context):
        dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(stage, batch_size=1, **options)
        for row in dataset.iter_rows():
            if row["refusal"]:
                raise ValueError(row["refusal"])
            yield row
