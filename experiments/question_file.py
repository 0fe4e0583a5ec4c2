"""Questions from a file, JSON Lines (one object a line) or Parquet (the same names as columns).

    {"id": "q1", "text": "Who directed ...?", "answers": ["Frank Wisbar"], "image": "flags/at.png", "family": "film",
     "gold_steps": [{"query": "Who directed ...?", "kb": "text", "answer": "Frank Wisbar", "entities": ["..."]}]}

Only `text` and `answers` are needed. Images are paths relative to the image folder, and never outside of it.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq

from rollout.records import GoldStep, Image, Question

QUESTION_KEYS = {"id", "text", "answers", "image", "family", "gold_steps"}
GOLD_KEYS = {"query", "kb", "answer", "entities"}


class DataError(ValueError):
    """A file or line of a data set that cannot be used; the message is one line: where, what was found, what was expected."""


def read_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(`FILE:LINE`, object) of every line that is not blank. Raises DataError for a missing file, and for a line that is no UTF-8 or no JSON
    object."""
    if not path.is_file():
        raise DataError(f"{path}: no such file; set data.path to a JSON Lines or Parquet file")
    if path.suffix == ".parquet":
        yield from _parquet_rows(path)
        return
    with path.open("rb") as lines:
        for number, raw in enumerate(lines, 1):
            where = f"{path}:{number}"
            try:
                line = raw.decode("utf-8")
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{where}: not UTF-8 (byte {raw[error.start]:#04x} at place {error.start + 1}); expected UTF-8: save the file as that"
                ) from None
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(f"{where}: not JSON ({error.msg} at column {error.colno}); expected one object on each line") from None
            if not isinstance(record, dict):
                raise DataError(f"{where}: found {type(record).__name__}, expected a JSON object")
            yield where, record


def _parquet_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(`FILE:ROW`, object), rows from 1; columns that are null count as left out."""
    try:
        file = pq.ParquetFile(path)
        batches = [batch.to_pylist() for batch in file.iter_batches()]
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path}: not Parquet ({str(error).splitlines()[0]})") from None
    for number, record in enumerate((record for batch in batches for record in batch), 1):
        yield f"{path}:{number}", _without_nulls(record)


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(found) for key, found in value.items() if found is not None}
    return [_without_nulls(found) for found in value] if isinstance(value, list) else value


def read_questions(path: str | Path, image_folder: str | Path | None = None) -> list[Question]:
    """The questions of the file, in its order. `image_folder` defaults to the folder of the file.

    Raises DataError for the first line that is not as described above, for an id that occurs twice, and for a picture that does not decode.
    """
    path = Path(path)
    folder = Path(image_folder) if image_folder else path.parent
    questions: dict[str, Question] = {}
    for where, record in read_lines(path):
        question = _question(where, record, folder)
        if question.id in questions:
            raise DataError(f"{where}: id {question.id!r} occurs twice; every question needs its own")
        questions[question.id] = question
    if not questions:
        raise DataError(f"{path}: holds no question")
    return list(questions.values())


def read_image(path: Path, folder: Path, where: str) -> Image:
    """The picture at `path`, inside `folder`, checked by decoding it once. Raises DataError, beginning with `where`."""
    path, folder = (folder / path).resolve(), folder.resolve()
    if not path.is_relative_to(folder):
        raise DataError(f"{where}: image {path} lies outside the image folder {folder}; set data.image_folder")
    if not path.is_file():
        raise DataError(f"{where}: no image {path}; paths are relative to data.image_folder")
    data = path.read_bytes()
    try:
        with PIL.Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as picture:
            picture.load()
    except (OSError, SyntaxError, PIL.Image.DecompressionBombError) as error:
        said = str(error).split(" <")[0]
        raise DataError(f"{where}: image {path} does not decode ({len(data)} bytes: {said}); expected PNG or JPEG") from None
    return Image.of(data)


def _question(where: str, record: dict[str, Any], folder: Path) -> Question:
    _only(where, "question", record, QUESTION_KEYS)
    text = _text(where, record, "text")
    image = read_image(Path(_text(where, record, "image")), folder, where) if record.get("image") else None
    steps = record.get("gold_steps")
    if steps is not None and not isinstance(steps, list):
        raise DataError(f"{where}: gold_steps is {type(steps).__name__}, expected a list (or leave it out when unknown)")
    return Question(
        id=str(record.get("id", where)),
        text=text,
        answers=_texts(where, record, "answers"),
        image=image,
        gold_steps=None if steps is None else tuple(_gold_step(where, step) for step in steps),
        family=str(record.get("family", "")),
    )


def _gold_step(where: str, step: Any) -> GoldStep:
    if not isinstance(step, dict):
        raise DataError(f"{where}: a gold step is {type(step).__name__}, expected an object with query, kb and answer")
    _only(where, "gold step", step, GOLD_KEYS)
    entities = _texts(where, step, "entities") if step.get("entities") else ()
    return GoldStep(_text(where, step, "query"), _text(where, step, "kb"), _text(where, step, "answer"), entities)


def _only(where: str, what: str, record: dict[str, Any], known: set[str]) -> None:
    if unknown := sorted(set(record) - known):
        raise DataError(f"{where}: unknown key {unknown[0]!r} in a {what}; known are {', '.join(sorted(known))}")


def _text(where: str, record: dict[str, Any], key: str) -> str:
    value = record.get(key)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{where}: {key} is {value!r}, expected a text that is not empty")
    return value


def _texts(where: str, record: dict[str, Any], key: str) -> tuple[str, ...]:
    values = record.get(key)
    if not isinstance(values, list) or not values or not all(isinstance(value, str) and value.strip() for value in values):
        raise DataError(f"{where}: {key} is {values!r}, expected a list with at least one text")
    return tuple(values)
