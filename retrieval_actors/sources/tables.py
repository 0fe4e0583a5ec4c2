"""Tables as JSON Lines: one object a line, with `header`, `rows` and optionally `title`, `section_title`, `table_id`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retrieval_actors.records import Passage
from retrieval_actors.sources.source import JsonLines, Place, id_of, text_of


@dataclass(frozen=True)
class Tables(JsonLines):
    """A table becomes "title | section | header: a ; b | row: x ; y | row: ...", cut between rows, with title and header in front of each
    chunk. The id of a chunk is TABLE_ID#NUMBER, so that the table is `id.rpartition("#")[0]`."""

    name = "tables"
    form = "an object with 'header' (a list), 'rows' (lists as long) and optionally 'title', 'section_title', 'table_id' on each line"
    modality = "table"

    words_per_chunk: int = 120
    """A chunk ends before the row that would make its rows longer than this; a longer row stands alone. 0: no bound.
    MiniLM reads about 190 words, title and header included."""
    rows_per_chunk: int = 0
    """Rows in a chunk at most; 0: no bound."""

    @classmethod
    def recognises(cls, path: Path, entry: dict[str, Any]) -> bool:
        return "header" in entry and "rows" in entry

    def of_entry(self, entry: dict[str, Any], place: Place) -> Iterable[Passage]:
        header = _cells(entry.get("header"), "'header'")
        rows = entry.get("rows")
        if not isinstance(rows, list) or not rows:
            raise ValueError(f"'rows' must be a list with at least one row, found {type(rows).__name__} {str(rows)[:40]}")
        table_id = id_of(entry, "table_id") if "table_id" in entry else str(place.line - 1)
        names = (text_of(entry, key, "").strip() for key in ("title", "section_title"))
        opening = " | ".join([*filter(None, names), f"header: {' ; '.join(header)}"])
        written = [self._row(row, number, len(header)) for number, row in enumerate(rows, 1)]
        for number, chunk in enumerate(self._chunks(written)):
            yield Passage(id=f"{table_id}#{number}", text=" | ".join([opening, *chunk]))

    def _row(self, row: Any, number: int, width: int) -> str:
        cells = _cells(row, f"row {number}")
        if len(cells) != width:
            raise ValueError(f"row {number} has {len(cells)} cells, the header has {width}")
        return f"row: {' ; '.join(cells)}"

    def _chunks(self, rows: list[str]) -> Iterator[list[str]]:
        chunk: list[str] = []
        words = 0
        for row in rows:
            longer = len(row.split())
            full = (self.words_per_chunk and words + longer > self.words_per_chunk) or len(chunk) == self.rows_per_chunk
            if chunk and full:
                yield chunk
                chunk, words = [], 0
            chunk.append(row)
            words += longer
        yield chunk


def _cells(cells: Any, what: str) -> list[str]:
    if not isinstance(cells, list) or not cells or not all(isinstance(cell, str | int | float | None) for cell in cells):
        raise ValueError(f"{what} must be a list of texts or numbers, found {str(cells)[:60]}")
    return ["" if cell is None else " ".join(str(cell).split()) for cell in cells]
