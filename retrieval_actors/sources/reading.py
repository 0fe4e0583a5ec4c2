"""From a source to the passages of a knowledge base: read, normalise, split."""

from __future__ import annotations

import unicodedata
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from retrieval_actors.records import Passage
from retrieval_actors.sources.registry import find_source
from retrieval_actors.sources.source import Place, Source, SourceError
from retrieval_actors.sources.windows import word_windows


@dataclass(frozen=True)
class Found:
    passage: Passage
    place: str
    """FILE:LINE of the record it comes from."""


@dataclass(frozen=True)
class Broken:
    """A record that is not what the source expects."""

    place: str
    reason: str


@dataclass(frozen=True)
class LeftOut:
    """A record without any passage: on purpose (a disambiguation page), or because nothing but blanks is in it."""

    place: str


@dataclass(frozen=True)
class Reading:
    """What is read, and how. Equal readings of equal files give equal passages."""

    path: Path
    source: Source
    window_words: int = 0
    """Longer texts are split into windows of so many words; 0: not at all."""
    window_stride: int = 0
    """Words from the start of a window to the start of the next; 0: half a window."""
    limit: int = 0
    """Records taken from the source; 0: all."""

    def parts(self) -> list[list[Path]]:
        """Files in groups that may be read side by side, in order. Raises SourceError for a window that leaves words out."""
        if self.window_words < 0 or not 0 <= self.window_stride <= self.window_words:
            raise SourceError(f"window_words={self.window_words} window_stride={self.window_stride}: expected 0 <= stride <= words")
        parts = self.source.parts(self.path)
        return [[file for part in parts for file in part]] if self.limit else parts

    def outcomes(self, files: Sequence[Path]) -> Iterator[Found | Broken | LeftOut]:
        """What becomes of the records of these files, one after the other."""
        taken = 0
        for file in files:
            for line, record in self._records(file):
                if self.limit and taken == self.limit:
                    return
                taken += 1
                if isinstance(record, Broken):
                    yield record
                    continue
                place = Place(file, line, self.path)
                try:
                    pieces = [piece for passage in self.source.passages(record, place) for piece in self._pieces(passage)]
                except (ValueError, OSError) as error:
                    yield Broken(str(place), " ".join(str(error).split()))
                except (LookupError, TypeError, AttributeError, RecursionError) as error:
                    # A source of the user's own that trusts its records more than they deserve.
                    yield Broken(str(place), f"{type(error).__name__}: {error}; expected {self.source.form}")
                else:
                    yield from (Found(piece, str(place)) for piece in pieces)
                    if not pieces:
                        yield LeftOut(str(place))

    def _records(self, file: Path) -> Iterator[tuple[int, Any]]:
        """Those of the source, and a `Broken` where the file cannot be read any further."""
        line = 0
        try:
            for line, record in self.source.records(file):
                yield line, record
        except (EOFError, OSError, zlib.error) as error:  # a packed file that was cut short
            yield line + 1, Broken(f"{file}:{line + 1}", f"the file cannot be read beyond this line: {error or type(error).__name__}")

    def described(self) -> dict[str, Any]:
        """All that decides what is read, as JSON: where it differs, another knowledge base comes out."""
        files = [file for part in self.parts() for file in part]
        return {
            "source": {"name": self.source.name, **asdict(self.source)},
            "window": [self.window_words, self.window_stride],
            "limit": self.limit,
            "files": [[str(file.absolute()), file.stat().st_size, file.stat().st_mtime_ns] for file in files],
        }

    def _pieces(self, passage: Passage) -> Iterator[Passage]:
        passage = normalised(passage)
        if not (passage.title or passage.text or passage.image):
            return
        if not self.window_words or len(passage.text.split()) <= self.window_words:
            yield passage
            return
        stride = self.window_stride or -(-self.window_words // 2)
        for number, window in enumerate(word_windows(passage.text, self.window_words, stride)):
            yield replace(passage, id=f"{passage.id}#{number}", text=window)


def normalised(passage: Passage) -> Passage:
    """Title and text in Unicode's composed form (NFC), each run of blanks a single space."""
    title, text = (" ".join(unicodedata.normalize("NFC", written).split()) for written in (passage.title, passage.text))
    f"{title}{text}{passage.id}".encode()  # half of a surrogate pair is legal JSON, but no text: refused here
    return replace(passage, title=title, text=text)


def read_source(path: str | Path, source: str = "auto", limit: int = 0, **settings: Any) -> Iterator[Passage]:
    """The passages of a source in its order; `settings` are the fields of its class. Raises SourceError for the first broken record."""
    reading = Reading(Path(path), find_source(source, path)(**settings), limit=limit)
    for files in reading.parts():
        for outcome in reading.outcomes(files):
            if isinstance(outcome, Broken):
                raise SourceError(f"{outcome.place}: {outcome.reason}")
            if isinstance(outcome, Found):
                yield outcome.passage
