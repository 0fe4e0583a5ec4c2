"""A FAISS IndexFlatIP written to disk as its vectors come, so that a shard may be larger than memory."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import faiss
import numpy as np

COUNT_AT = 8
"""Where the number of vectors stands in the file, as int64, behind the four letters of the type and the dimension."""


class FlatIndexFile:
    """Yielded by `create`: takes vectors until it is closed."""

    def __init__(self, file: BinaryIO, dimension: int):
        self._file, self._dimension = file, dimension
        self.vectors = 0

    @classmethod
    @contextmanager
    def create(cls, path: Path, dimension: int) -> Iterator[FlatIndexFile]:
        """The file is a whole index when the body ends: the same bytes as FAISS writes for an index with these vectors."""
        header = faiss.serialize_index(faiss.IndexFlatIP(dimension)).tobytes()
        with path.open("wb") as file:
            file.write(header)
            written = cls(file, dimension)
            yield written
            for position, count in ((COUNT_AT, written.vectors), (len(header) - 8, written.vectors * dimension)):
                file.seek(position)
                file.write(struct.pack("<q", count))

    def add(self, rows: np.ndarray) -> None:
        """(rows, dimension) float32."""
        if rows.ndim != 2 or rows.shape[1] != self._dimension:
            raise ValueError(f"vectors of shape {rows.shape}, expected (rows, {self._dimension})")
        norms = np.linalg.norm(rows, axis=1)
        if not np.all((np.abs(norms - 1) < 1e-3) | (norms == 0)):  # what is not a number neither
            raise ValueError(f"vectors must be unit rows, or zero, norms are {norms.min():.4f} to {norms.max():.4f}")
        self._file.write(np.ascontiguousarray(rows, np.float32).data)
        self.vectors += len(rows)
