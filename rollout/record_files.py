"""Rollouts in a file: the trajectories and scored turns of one iteration. Every distinct record, array and picture is one row of a Parquet table.
A record is JSON, and refers to other records, arrays and pictures by the numbers of their rows. Nothing is pickled."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rollout import records
from rollout.records import ScoredTurn, Trajectory

FILE = "rollouts.parquet"
SCHEMA = pa.schema({"kind": pa.string(), "data": pa.binary()})
"""`kind`: class of a record, `bytes`, or dtype of an array. The last row, `all`, lists the rows of the trajectories and of the scored turns."""
RECORDS: dict[str, Any] = {name: record for name, record in vars(records).items() if is_dataclass(record)}


def write_rollouts(folder: str | Path, trajectories: Sequence[Trajectory], scored: Sequence[ScoredTurn]) -> None:
    """Writes under another name, then renames: a folder of this name is always complete. Raises FileExistsError if it exists."""
    folder = Path(folder)
    if folder.exists():
        raise FileExistsError(f"{folder}: holds rollouts already; choose another folder, or remove it")
    rows: dict[tuple[str, bytes], int] = {}
    _plain([trajectories, scored], rows, "all")
    aside = folder.with_name(folder.name + ".partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist([{"kind": kind, "data": data} for kind, data in rows], schema=SCHEMA), aside / FILE)
    aside.rename(folder)


def _plain(value: Any, rows: dict[tuple[str, bytes], int], kind: str = "") -> Any:
    """`value` for JSON; records, arrays and bytes are added to `rows` and replaced by the number of their row."""
    if isinstance(value, np.ndarray):
        return rows.setdefault((value.dtype.name, value.tobytes()), len(rows))
    if isinstance(value, bytes):
        return rows.setdefault(("bytes", value), len(rows))
    if is_dataclass(value):
        kind, value = type(value).__name__, {field.name: _plain(getattr(value, field.name), rows) for field in fields(value)}
    elif isinstance(value, list | tuple):
        value = [_plain(each, rows) for each in value]
    if not kind:
        return value
    text = json.dumps(value, ensure_ascii=False, default=float)  # NumPy's numbers
    return rows.setdefault((kind, text.encode()), len(rows))


def read_rollouts(folder: str | Path) -> tuple[list[Trajectory], list[ScoredTurn]]:
    """What `write_rollouts` was given, bit for bit. Raises FileNotFoundError, or ValueError for other contents, naming the file."""
    file = Path(folder) / FILE
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing: no rollouts of an iteration; expected a folder that train.dump_rollouts wrote")
    table = pq.read_table(file)
    if table.schema.names != SCHEMA.names:
        raise ValueError(f"{file}: its columns are {table.schema.names}, expected {SCHEMA.names}")
    hints = {name: get_type_hints(record) for name, record in RECORDS.items()}
    found: list[Any] = []
    for kind, data in zip(*(column.to_pylist() for column in table.columns), strict=True):
        if kind == "bytes":
            found.append(data)
        elif kind == "all":
            trajectories, scored = json.loads(data)
            return [found[row] for row in trajectories], [found[row] for row in scored]
        elif kind in RECORDS:
            record = json.loads(data)
            if kind == "GoldStep" and "kb" in record:  # files from before several knowledge bases could be right
                record["kbs"] = [record.pop("kb")]
            if kind == "Turn":  # files from before responses could have tokens of several versions
                record.setdefault("earlier", [])
            if record.keys() != hints[kind].keys():
                raise ValueError(f"{file}: {kind} has the fields {list(record)}, expected {list(hints[kind])}; roll out again")
            found.append(RECORDS[kind](**{name: _restored(hints[kind][name], value, found) for name, value in record.items()}))
        else:
            found.append(np.frombuffer(data, kind).copy())
    raise ValueError(f"{file}: the row `all` is missing; expected it at the end")


def _restored(hint: Any, value: Any, found: Sequence[Any]) -> Any:
    """The value of a field with this type hint, from its JSON."""
    if value is None:
        return None
    if NoneType in get_args(hint):
        hint = next(kind for kind in get_args(hint) if kind is not NoneType)
    if hint in (np.ndarray, bytes) or is_dataclass(hint):
        return found[value]
    return tuple(_restored(get_args(hint)[0], each, found) for each in value) if isinstance(value, list) else value
