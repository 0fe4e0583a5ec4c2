"""Passages of a memory-mapped table, by row."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

COLUMNS = ("id", "text", "title")


class PassageRows:
    """`pyarrow.Table.take` copies each column whole when it has several chunks; here only the rows that are wanted are read."""

    def __init__(self, table: pa.Table):
        self._batches = table.to_batches()
        self._ends = np.cumsum([len(batch) for batch in self._batches])
        self.passages = table.num_rows

    def read(self, rows: np.ndarray, pictures: bool = False) -> dict[str, list]:
        """Column -> its values in the ascending `rows` (n,) int64: id, text, title, and the image if `pictures` says so."""
        names = (*COLUMNS, "image") if pictures else COLUMNS
        columns: dict[str, list] = {name: [] for name in names}
        numbers = np.searchsorted(self._ends, rows, side="right")
        for number in np.unique(numbers):
            batch = self._batches[number]
            wanted = pa.array(rows[numbers == number] - (self._ends[number] - len(batch)))
            for name in names:
                columns[name] += batch.column(name).take(wanted).to_pylist()
        return columns
