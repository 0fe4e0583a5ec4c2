"""Wikipedia as wikiextractor leaves it: folders AA, AB, ... of files wiki_00, wiki_01, ...

Both of its outputs are read, packed (`--compress`) or not: JSON Lines with `id`, `title` and `text` (`--json`), and blocks from
`<doc id="12" url="..." title="...">` to `</doc>`.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retrieval_actors.records import Passage
from retrieval_actors.sources.source import Place, Source, SourceError, id_of, open_file, text_of
from retrieval_actors.sources.windows import word_windows

OPENING = re.compile(rb'<doc id="(?P<id>[^"]*)"(?: revid="[^"]*")? url="[^"]*" title="(?P<title>.*)">\s*\Z')
NO_ARTICLE_TITLE = re.compile(r"(Lists? of |Index of |Outline of )|.*\(disambiguation( page)?\)\Z", re.IGNORECASE)
POINTS_ELSEWHERE = re.compile(r"[^\n]{0,200}\b(may|can|could|might)( also)? refer to\b[^\n]{0,40}:?\s*(\n|\Z)", re.IGNORECASE)
"""How the first line of a disambiguation page reads whose title does not say that it is one."""


@dataclass(frozen=True)
class Wikipedia(Source):
    """Articles in windows of `article_words` words, each a passage with the article's title and the id PAGE_ID#NUMBER.

    Disambiguation and list pages, known by their English titles or first lines, are left out, and so are pages without text.
    """

    name = "wikipedia"
    form = "the folder that wikiextractor wrote (AA/wiki_00, ...), with JSON Lines or <doc id= url= title=> blocks in its files"

    article_words: int = 100
    """Words in a window."""
    article_stride: int = 50
    """Words from the start of a window to the start of the next."""

    @classmethod
    def recognises(cls, path: Path, entry: dict[str, Any]) -> bool:
        if path.is_dir():
            return any(path.glob("*/wiki_*")) or any(path.glob("wiki_*"))
        return path.name.startswith("wiki_") and (not entry or {"id", "title", "text"} <= entry.keys())

    def parts(self, path: Path) -> list[list[Path]]:
        """Each folder (AA, AB, ...) is a part."""
        if not path.is_dir():
            return [[path]]
        folders: dict[Path, list[Path]] = {}
        for file in sorted(path.rglob("wiki_*")):
            folders.setdefault(file.parent, []).append(file)
        if not folders:
            raise SourceError(f"{path}: no file wiki_* in it; expected {self.form}")
        return list(folders.values())

    def records(self, file: Path) -> Iterator[tuple[int, bytes]]:
        """A line that is JSON is a record, and so is everything from <doc ...> to </doc>, or to where the next one begins."""
        block: list[bytes] = []
        first = 0
        with open_file(file) as lines:
            for number, line in enumerate(lines, 1):
                if block and line.startswith(b"<doc id="):
                    yield first, b"".join(block)
                    block = []
                if not block:
                    if not line.strip():
                        continue
                    if not line.startswith(b"<doc "):
                        yield number, line
                        continue
                    first = number
                block.append(line)
                if line.strip() == b"</doc>":
                    yield first, b"".join(block)
                    block = []
        if block:
            yield first, b"".join(block)

    def passages(self, record: bytes, place: Place) -> Iterable[Passage]:
        page_id, title, text = _of_block(record) if record.startswith(b"<doc ") else _of_json(record, self.form)
        if NO_ARTICLE_TITLE.match(title) or POINTS_ELSEWHERE.match(text):
            return
        for number, window in enumerate(word_windows(text, self.article_words, self.article_stride)):
            yield Passage(id=f"{page_id}#{number}", title=title, text=window)


def _of_json(record: bytes, form: str) -> tuple[str, str, str]:
    try:
        entry = json.loads(record)
    except ValueError as error:
        raise ValueError(f"neither JSON nor the begin of a <doc> ({error}); expected {form}") from None
    if not isinstance(entry, dict):
        raise ValueError(f"expected a JSON object, found {type(entry).__name__}")
    return id_of(entry, "id"), html.unescape(text_of(entry, "title")), html.unescape(text_of(entry, "text")).strip()


def _of_block(record: bytes) -> tuple[str, str, str]:
    """wikiextractor escapes the text for HTML and writes the title once more above it."""
    opening, _, rest = record.partition(b"\n")
    attributes = OPENING.match(opening)
    if not attributes:
        raise ValueError(f'found {opening[:80].decode(errors="replace")}, expected <doc id="..." url="..." title="...">')
    body, closing, _ = rest.rpartition(b"</doc>")
    if not closing:
        raise ValueError("this <doc> is not closed: expected a line </doc> before the next one begins")
    title, text = html.unescape(attributes["title"].decode()), html.unescape(body.decode()).strip()
    return attributes["id"].decode(), title, text.removeprefix(title).strip() if text.split("\n", 1)[0].strip() == title.strip() else text
