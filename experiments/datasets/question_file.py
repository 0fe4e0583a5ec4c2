"""`questions`: a file of your own, JSON Lines (one object a line) or another form of retrieval_actors/sources/data_files.py.

    {"id": "q1", "text": "Who directed ...?", "answers": ["Frank Wisbar"], "image": "flags/at.png", "family": "film",
     "gold_steps": [{"query": "Who directed ...?", "kb": "text", "answer": "Frank Wisbar", "entities": ["..."]}]}

Only `text` and `answers` are needed. Images are paths relative to the image folder, and never outside of it. In a spreadsheet (CSV, TSV, XLSX,
Parquet) the columns may be called `question` and `answer`, a cell holds several answers with `|` between them, and numbers are texts.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from experiments.config import DataConfig, EvaluationConfig, RunConfigError
from experiments.datasets.dataset import Dataset, made_of_records, split
from retrieval_actors.pictures import PictureError, read_picture
from retrieval_actors.sources.data_files import SPREADSHEETS, DataError, ending_of, plain_cell
from retrieval_actors.sources.source import id_of, picture_of
from rollout.records import GoldStep, Image, Question

QUESTION_KEYS = {"id", "text", "answers", "image", "family", "gold_steps"}
COLUMNS = {"question": "text", "answer": "answers"}  # other names in a spreadsheet
GOLD_KEYS = {"query", "kb", "kbs", "answer", "entities"}


def load_questions(data: DataConfig, evaluation: EvaluationConfig) -> Dataset:
    if not (data.path or data.heldout_path):
        raise RunConfigError("data.path is empty; data.name=questions needs it (see docs/04_data.md)")
    questions = read_questions(data.path, data.image_folder or None) if data.path else []
    if not data.heldout_path:
        return Dataset(*split(questions, data, evaluation))
    heldout = read_questions(data.heldout_path, data.image_folder or None)[: evaluation.questions]
    train, validation, _ = split(questions, data, replace(evaluation, questions=0))
    known = {(question.text, question.image) for question in questions}
    shared = sum((question.text, question.image) in known for question in heldout)
    note = (
        f"{shared} of the {len(heldout)} questions of data.heldout_path={data.heldout_path} are also in data.path={data.path}: results on them "
        "show memorisation, not how new questions are answered; with data.heldout_path empty, questions of data.path are held out"
    )
    return Dataset(train, validation, heldout, notes=(note,) if shared else ())


def read_questions(path: str | Path, image_folder: str | Path | None = None) -> list[Question]:
    """The questions of the file, in its order. `image_folder` defaults to the folder of the file. Raises DataError with FILE:LINE for a
    line of another form, for an id that occurs twice, and for a picture that does not decode."""
    path, found = Path(path), {}
    folder = Path(image_folder) if image_folder else path.parent
    spreadsheet = ending_of(path) in SPREADSHEETS

    def add(where: str, record: dict[str, Any]) -> None:
        if spreadsheet and not any(str(value).strip() for value in record.values()):
            return
        question = _question(where, _from_cells(record) if spreadsheet else record, folder)
        if question.id in found:
            raise ValueError(f"id {question.id!r} occurs twice; every question needs its own")
        found[question.id] = question

    list(made_of_records(path, "a question", add))
    if not found:
        raise DataError(f"{path}: holds no question; expected at least one")
    return list(found.values())


def read_image(path: str, folder: Path) -> Image:
    """The picture at `path`, which lies inside `folder`; it is decoded once. Raises ValueError."""
    try:
        return Image.of(read_picture(folder, path))
    except PictureError as error:
        raise ValueError(f"{error}{'' if (folder / path).is_file() else '; set data.image_folder'}") from None


def _from_cells(record: dict[str, Any]) -> dict[str, Any]:
    """The row of a spreadsheet with the keys and types of a question. Raises ValueError for two columns with one meaning."""
    for column, key in COLUMNS.items():
        if column in record and key in record:
            raise ValueError(f"both columns {column!r} and {key!r} have a value; expected one of them")
    cells = {COLUMNS.get(key, key): value if isinstance(value, bytes | dict | list) else _cell_text(value) for key, value in record.items()}
    answers = cells.get("answers", "")
    texts = map(_cell_text, answers.split("|") if isinstance(answers, str) else answers)
    return {key: cell for key, cell in cells.items() if cell != ""} | {"answers": list(filter(None, texts))}


def _cell_text(value: Any) -> str:
    """1901 for 1901.0, a date in ISO form."""
    value = plain_cell(value)
    return "" if value is None else str(int(value) if isinstance(value, float) and value.is_integer() else value).strip()


def _question(where: str, record: dict[str, Any], folder: Path) -> Question:
    """`where` (FILE:LINE) is the id of a record without one. Raises ValueError."""
    _refuse_unknown_keys("question", record, QUESTION_KEYS)
    text, steps, image = _text(record, "text"), record.get("gold_steps"), record.get("image")
    if steps is not None and not isinstance(steps, list):
        raise ValueError(f"gold_steps is {type(steps).__name__}, expected a list (or leave it out when unknown)")
    if isinstance(image, str) and "://" in image:
        raise ValueError(f"image is the address {image!r}; expected a file: fetch it, and give its path")
    picture = None if isinstance(image, str) else picture_of(record, "image", folder)
    return Question(
        id=id_of(record, "id") if "id" in record else where,
        text=text,
        answers=_texts(record, "answers"),
        image=read_image(_text(record, "image"), folder) if isinstance(image, str) else Image.of(picture) if picture else None,
        gold_steps=None if steps is None else tuple(map(_gold_step, steps)),
        family=_text(record, "family") if record.get("family") else "",
    )


def _gold_step(step: dict[str, Any]) -> GoldStep:
    _refuse_unknown_keys("gold step", step, GOLD_KEYS)
    entities = _texts(step, "entities") if step.get("entities") else ()
    kbs = _texts(step, "kbs") if step.get("kbs") else (_text(step, "kb"),)
    if step.get("kb") and step.get("kbs"):
        raise ValueError("a gold step has both kb and kbs; expected kb (one name), or kbs (several, each of them right)")
    return GoldStep(_text(step, "query"), kbs, _text(step, "answer"), entities)


def _refuse_unknown_keys(what: str, record: dict[str, Any], known: set[str]) -> None:
    if unknown := sorted(set(record) - known):
        raise ValueError(f"unknown key {unknown[0]!r} in a {what}; known are {', '.join(sorted(known))}")


def _text(record: dict[str, Any], key: str) -> str:
    value = record.get(key)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{key} is {value!r}, expected a text that is not empty")
    return value


def _texts(record: dict[str, Any], key: str) -> tuple[str, ...]:
    values = record.get(key)
    if not isinstance(values, list) or not values or not all(isinstance(value, str) and value.strip() for value in values):
        raise ValueError(f"{key} is {values!r}, expected a list of texts, at least one: ['Vienna']")
    return tuple(values)
