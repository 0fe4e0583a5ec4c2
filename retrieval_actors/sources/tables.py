"""Tables: records with `header` and `rows`, or spreadsheets (CSV, TSV, XLSX and Parquet), whose first row is the header."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retrieval_actors.records import Passage
from retrieval_actors.sources.data_files import SPREADSHEETS, Located, data_files, ending_of, plain_cell, records
from retrieval_actors.sources.documents import Documents
from retrieval_actors.sources.passage_lines import ID_KEYS, TEXT_KEYS
from retrieval_actors.sources.source import FolderFiles, Source, id_of, in_chunks, text_of


@dataclass(frozen=True)
class Tables(Source):
    """A table becomes "title | section | header: a ; b | row: x ; y | row: ...", cut between rows into chunks TABLE_ID#NUMBER that repeat title
    and header. A table without rows has no passage."""

    name = "tables"
    form = "an object with 'header' (a list), 'rows' (lists as long) and optionally 'title', 'section_title', 'table_id' on each line"
    modality = "table"

    words_per_chunk: int = 120
    """Words of rows in a chunk, at most; a longer row is its own chunk. 0: no limit. MiniLM reads about 190 words, title and header included."""

    @classmethod
    def recognises(cls, path: Path, entry: dict[str, Any]) -> bool:
        return "header" in entry and "rows" in entry

    def passages(self, record: dict[str, Any], file: Path, default_id: str) -> Iterable[Passage]:
        header = _as_texts(_cells(record.get("header"), "'header'"))
        rows = record.get("rows")
        if not isinstance(rows, list):
            raise ValueError(f"'rows' must be a list of rows, found {type(rows).__name__} {str(rows)[:40]}")
        table_id = id_of(record, "table_id") if record.get("table_id") is not None else default_id
        names = (text_of(record, key, "").strip() for key in ("title", "section_title"))
        opening = " | ".join([*filter(None, names), f"header: {' ; '.join(header)}"])
        columns = zip(*(self._row(row, number, len(header)) for number, row in enumerate(rows, 1)), strict=True)
        lines = [f"row: {' ; '.join(cells)}" for cells in zip(*map(_as_texts, columns), strict=True)]
        for number, chunk in enumerate(in_chunks(lines, lambda line: len(line.split()), self.words_per_chunk or math.inf)):
            yield Passage(id=f"{table_id}#{number}", text=" | ".join([opening, *chunk]))

    def _row(self, row: Any, number: int, width: int) -> list[Any]:
        cells = _cells(row, f"row {number}")
        if len(cells) != width:
            raise ValueError(f"row {number} has {len(cells)} cells, the header has {width}; an empty cell is null")
        return cells


@dataclass(frozen=True)
class Spreadsheets(FolderFiles, Tables):
    """Each sheet is a table with the name of its file, and that of the sheet where there are several; rows become passages as in `Tables`. A
    spreadsheet is in memory as a whole."""

    name = "spreadsheets"
    form = "a file .csv, .tsv, .xlsx or .parquet whose first row is the header, or a folder of them"
    endings = SPREADSHEETS

    @classmethod
    def recognises(cls, path: Path, entry: dict[str, Any]) -> bool:
        """Not where a column holds texts: those are passages."""
        files = data_files(path) if path.is_dir() else [path]
        texts = any(key in entry for key in TEXT_KEYS) or ("title" in entry and entry.keys() <= {*ID_KEYS, "title", "image"})
        only_spreadsheets = all(ending_of(file) in SPREADSHEETS for file in files)
        return bool(entry) and not texts and only_spreadsheets and not (path.is_dir() and Documents.recognises(path, entry))

    def read(self, file: Path) -> Iterator[Located]:
        """A table for each sheet; one without rows for an empty file."""
        sheets: dict[str, list[dict[str, Any]]] = {}
        for place, record in records(file):
            if isinstance(record, ValueError):
                yield place, record
            elif any(value is not None for value in record.values()):
                sheets.setdefault(place.rpartition("!")[0], []).append(record)
        for sheet, rows in (sheets or {"": []}).items():
            header = list(dict.fromkeys(name for row in rows for name in row))
            cells = [[plain_cell(row.get(name)) for name in header] for row in rows]
            yield f"{sheet}!1" if sheet else "1", {"section_title": sheet, "header": header, "rows": cells}

    def passages(self, record: dict[str, Any], file: Path, default_id: str) -> Iterable[Passage]:
        name, sheet = default_id.rpartition(":")[0] or file.name, record["section_title"]
        named = {"title": file.name[: file.name.lower().rindex(ending_of(file))], "table_id": f"{name}!{sheet}" if sheet else name}
        return super().passages(record | named, file, default_id) if record["rows"] else ()


def _cells(cells: Any, what: str) -> list[Any]:
    if not isinstance(cells, list) or not cells or not all(isinstance(cell, str | int | float | None) for cell in cells):
        raise ValueError(f"{what} must be a list of texts or numbers, found {str(cells)[:60]}")
    return cells


def _as_texts(column: Sequence[Any]) -> list[str]:
    """Cells as texts, empty for null. Whole numbers that were stored as floats because of a null are whole again: 1901, not 1901.0."""
    whole = all(cell.is_integer() and abs(cell) < 2**53 for cell in column if isinstance(cell, float))
    return ["" if cell is None else " ".join(str(int(cell) if whole and isinstance(cell, float) else cell).split()) for cell in column]
