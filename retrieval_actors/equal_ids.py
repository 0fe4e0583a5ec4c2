"""Passages with one id: looked for without holding all ids in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import pyarrow as pa


def first_equal_ids(tables: Callable[[], Iterable[pa.Table]]) -> tuple[str, str, str] | None:
    """(id, place, place) of the first passage whose id occurred before, or None. `tables` yields columns `id` and `place`, each time anew.

    Eight bytes are held for each passage; only ids with equal hashes are compared themselves.
    """
    hashes = [np.fromiter(map(hash, table.column("id").to_pylist()), np.int64, table.num_rows) for table in tables()]
    ordered = np.sort(np.concatenate(hashes)) if hashes else np.zeros(0, np.int64)
    twice = set(ordered[1:][ordered[1:] == ordered[:-1]].tolist())
    if not twice:
        return None
    seen: dict[str, str] = {}
    for table in tables():
        for row, found in enumerate(table.column("id").to_pylist()):
            if hash(found) in twice:
                place = table.column("place")[row].as_py()
                if found in seen:
                    return found, seen[found], place
                seen[found] = place
    return None
