"""Spreadsheets as tables: CSV, TSV, XLSX and Parquet, whose first row is the header."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retrieval_actors.records import Passage
from retrieval_actors.sources.data_files import SPREADSHEETS, Located, data_files, ending_of, plain_cell, records
from retrieval_actors.sources.documents import Documents
from retrieval_actors.sources.folder_files import FolderFiles
from retrieval_actors.sources.passage_lines import ID_KEYS, TEXT_KEYS
from retrieval_actors.sources.tables import Tables


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
