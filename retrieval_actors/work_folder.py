"""What a build has done so far, in a folder beside the one it will become: what is here is not done again after a kill.

    plan.json                     what is built; another plan starts anew
    part-00003.json               a part of the source was read: how many passages its chunks hold, what was left out
    part-00003.broken.jsonl       its broken records, where they are skipped
    passages-00003-000007.arrow   a chunk of passages, with the place each comes from
    vectors-00003-000007.npy      their (passages, dimension) float32 unit vectors
    new/                          the knowledge base, until it is whole

Chunks are cut by count and size alone, so that equal sources give equal chunks. Every file is written aside and renamed.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from retrieval_actors.knowledge_base import SCHEMA
from retrieval_actors.records import Passage
from retrieval_actors.sources.reading import Broken, Found, LeftOut, Reading
from retrieval_actors.sources.source import SourceError

PLACED_SCHEMA = SCHEMA.append(pa.field("place", pa.string()))


@dataclass(frozen=True)
class ChunkSize:
    """Where a chunk ends: small enough that little is lost in a kill, large enough that texts of like length fill batches."""

    passages: int = 2048
    bytes: int = 64 * 2**20
    """Of texts and pictures together; a passage that is larger stands alone."""


@dataclass(frozen=True)
class Chunk:
    part: int
    number: int
    passages: int

    @property
    def name(self) -> str:
        return f"{self.part:05d}-{self.number:06d}"


@dataclass(frozen=True)
class WorkFolder:
    path: Path

    @classmethod
    @contextmanager
    def beside(cls, out: Path, plan: dict[str, Any]) -> Iterator[tuple[WorkFolder, str]]:
        """(the folder, one line about what was found there). It goes when the body ends, and when a record or a setting is refused before
        anything was embedded; an interruption leaves it.

        Raises ValueError when another process builds the same folder now.
        """
        out.parent.mkdir(parents=True, exist_ok=True)
        path = out.parent / f".{out.name}.building"
        path.mkdir(exist_ok=True)
        with (path / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(f"{out} is being built by another process: wait for it, or end it") from None
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
            return f"going on with the build in {self.path}"
        for found in self.path.iterdir():
            if found.is_dir():
                shutil.rmtree(found)
            elif found.name != "lock":
                found.unlink()
        with _aside(recorded) as file:
            file.write_text(json.dumps(plan, indent=2), encoding="utf-8")
        if before is None:
            return ""
        changed = [key for key in plan.keys() | before.keys() if plan.get(key) != before.get(key)]
        return f"starting anew: {', '.join(sorted(changed))} changed since the build in {self.path} was interrupted"

    @property
    def new_folder(self) -> Path:
        """Where the knowledge base is put together."""
        return self.path / "new"

    def is_read(self, part: int) -> bool:
        return self._part_file(part).is_file()

    def read_part(self, part: int, files: Sequence[Path], reading: Reading, skip_broken: bool, size: ChunkSize) -> Iterator[int]:
        """Writes the chunks of one part, yielding the number of passages of each. Raises SourceError for a broken record, if not skipped."""
        counts: list[int] = []
        summary = {"left_out": 0, "broken": 0, "pictures": 0}
        waiting: list[Found] = []
        waiting_bytes = 0
        with _aside(self._broken_file(part)) as aside, aside.open("w", encoding="utf-8") as broken:
            for outcome in reading.outcomes(files):
                if isinstance(outcome, LeftOut):
                    summary["left_out"] += 1
                elif isinstance(outcome, Broken):
                    if not skip_broken:
                        raise SourceError(f"{outcome.place}: {outcome.reason}")
                    summary["broken"] += 1
                    broken.write(json.dumps({"place": outcome.place, "reason": outcome.reason}, ensure_ascii=False) + "\n")
                else:
                    longer = _bytes_of(outcome.passage)
                    if waiting and (len(waiting) == size.passages or waiting_bytes + longer > size.bytes):
                        yield self._write_passages(part, counts, waiting)
                        waiting, waiting_bytes = [], 0
                    waiting.append(outcome)
                    waiting_bytes += longer
                    summary["pictures"] += outcome.passage.image is not None
            if waiting:
                yield self._write_passages(part, counts, waiting)
        with _aside(self._part_file(part)) as aside:
            aside.write_text(json.dumps({"chunks": counts, **summary}), encoding="utf-8")

    def part_summary(self, part: int) -> dict[str, Any]:
        """Of a part that was read: `chunks` (passages in each), `left_out`, `broken` and `pictures` counts."""
        return json.loads(self._part_file(part).read_text(encoding="utf-8"))

    def broken(self, part: int) -> Iterator[str]:
        """A JSON line with `place` and `reason` for each record of a part that was skipped."""
        with self._broken_file(part).open(encoding="utf-8") as lines:
            yield from lines

    def passages_file(self, chunk: Chunk) -> Path:
        return self.path / f"passages-{chunk.name}.arrow"

    def passages(self, chunk: Chunk) -> pa.Table:
        """Memory-mapped: the columns of a stored passage, and `place`."""
        return pa.ipc.open_file(pa.memory_map(str(self.passages_file(chunk)))).read_all()

    def is_embedded(self, chunk: Chunk) -> bool:
        return self.vectors_file(chunk).is_file()

    def vectors_file(self, chunk: Chunk) -> Path:
        return self.path / f"vectors-{chunk.name}.npy"

    def vectors(self, chunk: Chunk) -> np.ndarray:
        """(passages, dimension) float32, memory-mapped."""
        return np.load(self.vectors_file(chunk), mmap_mode="r")

    def write_vectors(self, chunk: Chunk, vectors: np.ndarray) -> None:
        with _aside(self.vectors_file(chunk)) as aside, aside.open("wb") as file:
            np.save(file, vectors)

    def _write_passages(self, part: int, counts: list[int], found: Sequence[Found]) -> int:
        chunk = Chunk(part, len(counts), len(found))
        columns = [pa.array([getattr(one.passage, field.name) for one in found], field.type) for field in SCHEMA]
        batch = pa.record_batch([*columns, pa.array([one.place for one in found], pa.string())], schema=PLACED_SCHEMA)
        with (
            _aside(self.passages_file(chunk)) as aside,
            pa.OSFile(str(aside), "wb") as sink,
            pa.ipc.new_file(sink, PLACED_SCHEMA) as writer,
        ):
            writer.write_batch(batch)
        counts.append(len(found))
        return len(found)

    def _part_file(self, part: int) -> Path:
        return self.path / f"part-{part:05d}.json"

    def _broken_file(self, part: int) -> Path:
        return self.path / f"part-{part:05d}.broken.jsonl"


@contextmanager
def _aside(path: Path) -> Iterator[Path]:
    """A path to write to, which takes the place of `path` when all is written: half a file is never taken for a whole one."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    yield aside
    aside.replace(path)


def _bytes_of(passage: Passage) -> int:
    return len(passage.title) + len(passage.text) + len(passage.image or b"")
