"""Wikipedia as `wikiextractor --json` writes it: folders AA, AB, ... of files wiki_00, ..., packed or not; a page on each line."""

import html
import itertools
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retrieval_actors.records import Passage
from retrieval_actors.sources.data_files import DataError, records
from retrieval_actors.sources.source import Source, id_of, text_of, word_windows

NO_ARTICLE_TITLE = re.compile(r"(Lists? of |Index of |Outline of )|.*\(disambiguation( page)?\)\Z", re.IGNORECASE)
DISAMBIGUATION = re.compile(r"[^\n]{0,200}\b(may|can|could|might)( also)? refer to\b[^\n]{0,40}:?\s*(\n|\Z)", re.IGNORECASE)
"""First line of a disambiguation page."""


@dataclass(frozen=True)
class Wikipedia(Source):
    """Articles in windows, each a passage with the article's title and the id PAGE_ID#NUMBER. Disambiguation and list pages, recognised by
    English titles or first lines, and pages without text are left out."""

    name = "wikipedia"
    form = "the folder that wikiextractor --json wrote (AA/wiki_00, ...)"

    article_words: int = 100
    """Words in a window."""
    article_stride: int = 50
    """Words from one window's start to the next's."""

    @classmethod
    def recognises(cls, path: Path, entry: dict[str, Any]) -> bool:
        if path.is_dir():
            return any(path.glob("*/wiki_*")) or any(path.glob("wiki_*"))
        return path.name.startswith("wiki_") and (not entry or {"id", "title", "text"} <= entry.keys())

    def parts(self, path: Path) -> list[list[Path]]:
        """Each folder is a part."""
        files = sorted(file for file in path.rglob("wiki_*") if file.is_file()) if path.is_dir() else [path]
        if not files:
            raise DataError(f"{path}: no file wiki_* in it; expected {self.form}")
        _, first = next(records(files[0]), ("", None))
        if isinstance(first, ValueError) and "found '<doc " in str(first):
            raise DataError(f"{files[0]}: found <doc> blocks, expected JSON Lines: run wikiextractor with --json")
        return [list(group) for _, group in itertools.groupby(files, key=lambda file: file.parent)]

    def passages(self, record: dict[str, Any], file: Path, default_id: str) -> Iterable[Passage]:
        page_id, title, text = id_of(record, "id"), *(html.unescape(text_of(record, key)) for key in ("title", "text"))
        if NO_ARTICLE_TITLE.match(title) or DISAMBIGUATION.match(text.strip()):
            return
        for number, window in enumerate(word_windows(text, self.article_words, self.article_stride)):
            yield Passage(id=f"{page_id}#{number}", title=title, text=window)
