"""Which sources there are, and which one a path looks like."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

from retrieval_actors.sources.captioned_images import CaptionedImages
from retrieval_actors.sources.mbeir import MbeirCandidates
from retrieval_actors.sources.passage_lines import PassageLines
from retrieval_actors.sources.source import Source, SourceError, open_file
from retrieval_actors.sources.tables import Tables
from retrieval_actors.sources.wikipedia import Wikipedia

ASKED_IN_ORDER: tuple[type[Source], ...] = (MbeirCandidates, CaptionedImages, Tables, Wikipedia, PassageLines)
"""`source=auto` takes the first that recognises the path: the pickier ones come first."""
SOURCES = {source.name: source for source in ASKED_IN_ORDER}


def find_source(name: str, path: str | Path) -> type[Source]:
    """The source called `name`, `auto` for the one that recognises the path, or MODULE:CLASS for one of your own.

    Raises SourceError, one line, where none fits, and OSError for a path that is not there.
    """
    path = Path(path)
    path.stat()
    if name in SOURCES:
        return SOURCES[name]
    if ":" in name:
        return _of_module(name)
    if name != "auto":
        raise SourceError(f"source={name}: use auto, MODULE:CLASS, or one of {', '.join(SOURCES)}")
    entry = {} if path.is_dir() else _first_entry(path)
    for source in ASKED_IN_ORDER:
        if source.recognises(path, entry):
            return source
    found = (
        f"a first line with the keys {sorted(entry)}" if entry else "a folder" if path.is_dir() else "a first line that is no JSON object"
    )
    known = "; ".join(f"source={source.name} ({source.form})" for source in ASKED_IN_ORDER)
    raise SourceError(f"{path}: no source recognises it: {found}. Say which it is: {known}")


def _of_module(name: str) -> type[Source]:
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise SourceError(f"source={name}: {error}; expected MODULE:CLASS, importable from here") from None
    if not (isinstance(found, type) and issubclass(found, Source)):
        raise SourceError(f"source={name} is {found!r}, expected a subclass of retrieval_actors.sources.source.Source")
    return found


def _first_entry(path: Path) -> dict[str, Any]:
    with open_file(path) as lines:
        try:
            entry = json.loads(lines.readline())
        except ValueError:
            return {}
    return entry if isinstance(entry, dict) else {}
