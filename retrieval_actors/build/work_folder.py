"""The work folder of a build, next to its result: after a kill, the next build continues from it.

    plan.json                     what is built; another plan starts from scratch
    part-00003.json               a part of the source was read: passages of each chunk, counts, broken records that were skipped
    passages-00003-000007.arrow   a chunk of passages, each with its FILE:LINE
    vectors-00003-000007.npy      their (passages, dimension) float32 unit vectors
    new/                          the knowledge base, until it is complete

Chunks are cut by count and size only, so equal sources give equal chunks. Every file is written under another name, then renamed.
"""

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa

from retrieval_actors.build.from_passages import passage_table
from retrieval_actors.folder_lock import hold
from retrieval_actors.knowledge_base import read_arrow
from retrieval_actors.records import Passage
from retrieval_actors.sources.data_files import DataError
from retrieval_actors.sources.read_passages import Reading
from retrieval_actors.sources.source import in_chunks

CHUNK_BYTES = 64 * 2**20  # of texts and pictures in a chunk; a larger passage is a chunk of its own


@dataclass(frozen=True)
class Chunk:
    part: int
    number: int
    passages: int


@dataclass(frozen=True)
class WorkFolder:
    path: Path

    @classmethod
    @contextmanager
    def beside(cls, out: Path, plan: dict[str, Any]) -> Iterator[tuple[Self, str]]:
        """(folder, one line about an earlier build). Removed at the end, and after an error before anything is embedded. Raises FolderHeldError."""
        path = out.parent / f".{out.name}.building"
        with hold(out):
            path.mkdir(parents=True, exist_ok=True)
            work = cls(path)
            try:
                yield work, work._resume(plan)
            except (ValueError, OSError):
                if not any(path.glob("vectors-*.npy")):
                    shutil.rmtree(path, ignore_errors=True)  # readers of other parts may still write
                raise
            shutil.rmtree(path, ignore_errors=True)

    def _resume(self, plan: dict[str, Any]) -> str:
        plan = json.loads(json.dumps(plan))
        recorded = self.path / "plan.json"
        before = json.loads(recorded.read_text(encoding="utf-8")) if recorded.is_file() else None
        if before == plan:
            return f"continuing the build in {self.path}"
        shutil.rmtree(self.path)
        self.path.mkdir()
        with _aside(recorded) as file:
            file.write_text(json.dumps(plan, indent=2), encoding="utf-8")
        if before is None:
            return ""
        changed = [key for key in plan.keys() | before.keys() if plan.get(key) != before.get(key)]
        return f"starting again: {', '.join(sorted(changed))} changed since the build in {self.path} was interrupted"

    def is_read(self, part: int) -> bool:
        return self._part_file(part).is_file()

    def read_part(
        self, part: int, files: Sequence[Path], reading: Reading, skip_broken: bool, chunk_passages: int, chunk_bytes: int = CHUNK_BYTES
    ) -> Iterator[int]:
        """Writes the chunks of a part, yielding the passages of each. Raises DataError for a broken record, unless skipped."""
        summary: dict[str, Any] = {"chunks": [], "left_out": [], "broken": [], "pictures": 0}

        def passages() -> Iterator[tuple[Passage, str]]:
            for place, found in reading.outcomes(files):
                if isinstance(found, list):
                    summary["left_out"] += [] if found else [place]
                    summary["pictures"] += sum(passage.image is not None for passage in found)
                    yield from ((passage, place) for passage in found)
                elif skip_broken:
                    summary["broken"].append({"place": place, "reason": str(found)})
                else:
                    raise DataError(f"{place}: {found}")

        def size_of(located: tuple[Passage, str]) -> int:
            passage, _ = located
            return len(passage.title) + len(passage.text) + len(passage.image or b"")

        for located in in_chunks(passages(), size_of, chunk_bytes, chunk_passages):
            places = pa.array([place for _, place in located], pa.string())
            table = passage_table([passage for passage, _ in located]).append_column("place", places)
            chunk = Chunk(part, len(summary["chunks"]), len(located))
            with _aside(self._passages_file(chunk)) as aside, pa.ipc.new_file(str(aside), table.schema) as writer:
                writer.write_table(table)
            summary["chunks"].append(chunk.passages)
            yield chunk.passages
        with _aside(self._part_file(part)) as aside:
            aside.write_text(json.dumps(summary), encoding="utf-8")

    def part_summary(self, part: int) -> dict[str, Any]:
        """`chunks` (passages in each), `broken` (place and reason of each record), `left_out` (places), and the number of `pictures`."""
        return json.loads(self._part_file(part).read_text(encoding="utf-8"))

    def passages(self, chunk: Chunk) -> pa.Table:
        """Memory-mapped: the columns of SCHEMA, and `place`."""
        return read_arrow(self._passages_file(chunk))

    def is_embedded(self, chunk: Chunk) -> bool:
        return self._vectors_file(chunk).is_file()

    def vectors(self, chunk: Chunk) -> np.ndarray:
        """(passages, dimension) float32, memory-mapped."""
        return np.load(self._vectors_file(chunk), mmap_mode="r")

    def write_vectors(self, chunk: Chunk, vectors: np.ndarray) -> None:
        with _aside(self._vectors_file(chunk)) as aside, aside.open("wb") as file:
            np.save(file, vectors)

    def _part_file(self, part: int) -> Path:
        return self.path / f"part-{part:05d}.json"

    def _passages_file(self, chunk: Chunk) -> Path:
        return self.path / f"passages-{chunk.part:05d}-{chunk.number:06d}.arrow"

    def _vectors_file(self, chunk: Chunk) -> Path:
        return self.path / f"vectors-{chunk.part:05d}-{chunk.number:06d}.npy"


@contextmanager
def _aside(path: Path) -> Iterator[Path]:
    """A path to write to, renamed to `path` at the end: so no file is ever incomplete."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    yield aside
    aside.replace(path)
