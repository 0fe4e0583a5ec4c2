"""Reads the passages of a path: finds the source, reads its records, normalises, splits into windows."""

import importlib
import itertools
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from retrieval_actors.records import Passage
from retrieval_actors.sources.data_files import DataError, data_files, records
from retrieval_actors.sources.documents import Documents
from retrieval_actors.sources.passage_lines import CaptionedPictures, MbeirCandidates, PassageLines, Pictures
from retrieval_actors.sources.source import Source, word_windows
from retrieval_actors.sources.tables import Spreadsheets, Tables
from retrieval_actors.sources.wikipedia import Wikipedia

SOURCES: dict[str, type[Source]] = {
    source.name: source
    for source in (MbeirCandidates, CaptionedPictures, Tables, Wikipedia, Spreadsheets, PassageLines, Pictures, Documents)
}
"""`source=auto` takes the first that recognises the path."""
FIRST_RECORDS = 10  # read to recognise a source; more than one, as the first may be broken and on_error=skip leaves it out


def find_source(name: str, path: str | Path) -> type[Source]:
    """The source called `name`; for `auto` the one that recognises the path; for MODULE:CLASS that class. Raises DataError if there is none."""
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    if ":" in name:
        module, _, attribute = name.partition(":")
        try:
            return getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise DataError(f"source={name}: {error}; expected MODULE:CLASS, importable from here") from None
    if name in SOURCES:
        return SOURCES[name]
    if name != "auto":
        raise DataError(f"source={name}: use auto, MODULE:CLASS, or one of {', '.join(SOURCES)}")
    files = data_files(path)[:1] if path.is_dir() else [path]
    first = [(f"{file}:{place}", record) for file in files for place, record in itertools.islice(records(file), FIRST_RECORDS)]
    entry = next((record for _, record in first if isinstance(record, dict)), {})
    for source in SOURCES.values():
        if source.recognises(path, entry):
            return source
    if files and not entry:
        raise DataError(": ".join(map(str, first[0])) if first else f"{files[0]}: holds no record; expected at least one")
    found = f"a first record with the keys {sorted(entry)}" if entry else "a folder without data files"
    known = "; ".join(f"source={source.name} ({source.form})" for source in SOURCES.values())
    raise DataError(f"{path}: no source recognises it: {found}. Name the key of its texts (text_from=KEY), or the source: {known}")


@dataclass(frozen=True)
class Reading:
    """A path and how to read it; equal readings of equal files give equal passages."""

    path: Path
    source: Source
    window_words: int = 0
    window_stride: int = 0
    limit: int = 0  # as in BuildSettings

    def parts(self) -> list[list[Path]]:
        """Files in groups that may be read in parallel, in order. Raises DataError for windows that leave words out."""
        if self.window_words < 0 or not 0 <= self.window_stride <= self.window_words:
            raise DataError(f"window_words={self.window_words} window_stride={self.window_stride}: expected 0 <= stride <= words")
        parts = self.source.parts(self.path)
        return [[file for part in parts for file in part]] if self.limit else parts

    def outcomes(self, files: Sequence[Path]) -> Iterator[tuple[str, list[Passage] | ValueError]]:
        """(FILE:LINE, its passages or an error in one line) of each record in order; no passages if it is left out."""
        located = ((file, number, *found) for file in files for number, found in enumerate(self.source.read(file)))
        for file, number, line, record in itertools.islice(located, self.limit or None):
            default_id = str(number) if file == self.path else f"{file.relative_to(self.path)}:{number}"
            yield f"{file}:{line}", record if isinstance(record, ValueError) else self._passages(record, file, default_id)

    def _passages(self, record: Any, file: Path, default_id: str) -> list[Passage] | ValueError:
        try:
            return [part for passage in self.source.passages(record, file, default_id) for part in self._split(passage)]
        except (ValueError, OSError) as error:
            return ValueError(" ".join(str(error).split()))
        except (LookupError, TypeError, AttributeError, RecursionError) as error:  # a user's own source that checks nothing
            return ValueError(f"{type(error).__name__}: {error}; expected {self.source.form}")

    def described(self) -> dict[str, Any]:
        """All that decides what is read, as JSON."""
        files = [file for part in self.parts() for file in part]
        return {
            "source": {"name": self.source.name, **asdict(self.source)},
            "window": [self.window_words, self.window_stride],
            "limit": self.limit,
            "files": [[str(file.absolute()), file.stat().st_size, file.stat().st_mtime_ns] for file in files],
        }

    def _split(self, passage: Passage) -> Iterator[Passage]:
        """The passage, or its windows: in Unicode's composed form (NFC), each run of blanks a single space."""
        title, text = (" ".join(unicodedata.normalize("NFC", part).split()) for part in (passage.title, passage.text))
        f"{title}{text}{passage.id}".encode()  # raises ValueError for half a surrogate pair
        passage = replace(passage, title=title, text=text)
        if not self.window_words or len(text.split()) <= self.window_words:
            if title or text or passage.image:
                yield passage
            return
        stride = self.window_stride or -(-self.window_words // 2)
        for number, window in enumerate(word_windows(text, self.window_words, stride)):
            yield replace(passage, id=f"{passage.id}#{number}", text=window)


def read_source(path: str | Path, source: str = "auto", limit: int = 0, **settings: Any) -> Iterator[Passage]:
    """The passages of a source in its order; `settings` are the fields of its class. Raises DataError for the first broken record."""
    reading = Reading(Path(path), find_source(source, path)(**settings), limit=limit)
    for files in reading.parts():
        for place, found in reading.outcomes(files):
            if isinstance(found, ValueError):
                raise DataError(f"{place}: {found}")
            yield from found
