"""Question sets of open-domain QA, in the forms in which they are published: `nq`, `triviaqa`, `popqa`, `bamboogle`. They bring no passages:
knowledge bases are named in `retrieval.folders`.

NQ-open, DPR              question, answer or answers: [text, ...]
TriviaQA                  {"Data": [{Question, QuestionId, Answer: {Value, Aliases}}, ...]}, or the records alone
PopQA, Bamboogle          their tables: question, possible_answers; Question, Answer
Search-R1, FlashRAG       id, question, golden_answers; of a file with several sets (`data_source`) only the questions of its own
"""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from experiments.config import DataConfig, EvaluationConfig, RunConfigError
from experiments.datasets.dataset import Dataset, made_of_records, place_of, split
from retrieval_actors.sources.data_files import DataError, Located, array_records, open_text, read_records
from rollout.records import Question

FILES = {  # Data set -> names of its training file and of its held-out file in a folder; of several that are there, the first is read
    "nq": (("NQ-open.train.jsonl", "train.*"), ("NQ-open.dev.jsonl", "test.*", "dev.*")),
    "triviaqa": (("unfiltered-web-train.json", "w*-train.json", "train.*"), ("unfiltered-web-dev.json", "w*-dev.json", "test.*", "dev.*")),
    "popqa": ((), ("popQA.tsv", "test.*")),
    "bamboogle": ((), ("Bamboogle*.csv", "test.*")),
    "hotpotqa": (("hotpot_train*.json", "train.*"), ("hotpot_dev_distractor*.json", "hotpot_dev_fullwiki*.json", "dev.*")),
    "2wikimultihopqa": (("train.*",), ("dev.*",)),
    "musique": (("musique_ans*_train.jsonl", "train.*"), ("musique_ans*_dev.jsonl", "dev.*")),
}
ANSWERS = ("golden_answers", "answer", "answers", "possible_answers", "Answer")
Splits = tuple[list[Question], list[Question], list[Question]]
Make = Callable[[str, dict[str, Any]], Question | None]  # None: a record of another set


def load_open_domain(name: str, data: DataConfig, evaluation: EvaluationConfig) -> Dataset:
    return Dataset(*drawn(question_files(name, data), data, evaluation, partial(open_question, name)))


def question_files(name: str, data: DataConfig) -> list[Path]:
    """The one file to draw all questions from, or the training file and the held-out file. Raises RunConfigError."""
    place = place_of(data, name)
    if place.is_file():
        return [place]
    found = [next((file for pattern in names for file in sorted(place.glob(pattern))), None) for names in FILES[name]]
    if files := [file for file in found if file]:
        return files
    expected = ", ".join(dict.fromkeys(pattern for names in FILES[name] for pattern in names))
    raise RunConfigError(f"data.path is {data.path!r} and {place} holds none of {expected}; set data.path to the file")


def drawn(files: list[Path], data: DataConfig, evaluation: EvaluationConfig, make: Make) -> Splits:
    """(train, validation, held-out); held-out questions come from the second file, if there are two. Raises DataError with FILE:LINE."""
    first, *second = (read_published(file, data.name, make) for file in files)
    if not second:
        return split(first, data, evaluation)
    train, validation, _ = split(first, data, replace(evaluation, questions=0))
    return train, validation, split(second[0], data, evaluation)[2]


def read_published(file: Path, name: str, make: Make) -> list[Question]:
    """The questions of a file; one without an id gets the name of the file and its number."""
    found: dict[str, Question] = {}

    def add(where: str, record: dict[str, Any]) -> None:
        if (question := make(where, record)) is None:
            return
        if not question.text.strip() or not question.answers:
            raise ValueError(f"the question is {question.text!r} and its answers are {list(question.answers)}; expected neither empty")
        question = question if question.id else replace(question, id=f"{file.stem}-{len(found)}")
        if question.id in found:
            raise ValueError(f"id {question.id!r} occurs twice; every question needs its own")
        found[question.id] = question

    list(made_of_records(file, f"a record of {name}", add, published_records))
    if not found:
        raise DataError(f"{file}: holds no question of {name}")
    return list(found.values())


def published_records(file: Path) -> Iterator[Located]:
    """(`FILE:LINE`, record), also of TriviaQA's files, whose records are the array `Data` of one object."""
    text = ""
    if file.is_file() and file.suffix == ".json":
        with open_text(file) as content:
            if begun := re.match(r'\s*\{\s*"Data"\s*:\s*(?=\[)', head := content.read(2**12)):
                text = head + content.read()
    if not text or not begun:
        yield from read_records(file)
        return
    for place, record in array_records(text[begun.end() :], 1 + text.count("\n", 0, begun.end()), whole=False):
        if isinstance(record, ValueError):
            raise DataError(f"{file}:{place}: {record}")
        yield f"{file}:{place}", record


def open_question(name: str, where: str, record: dict[str, Any]) -> Question | None:
    """None for a question of another set in the same file."""
    if record.get("data_source", name) != name:
        return None
    key = next((key for key in ANSWERS if key in record), "")
    if not key:
        raise ValueError(f"has no answers; expected one of {', '.join(ANSWERS)}")
    answers = json.loads(record[key]) if key == "possible_answers" and isinstance(record[key], str) else record[key]
    if isinstance(answers, dict):  # TriviaQA
        known = {key.lower(): value for key, value in answers.items()}
        answers = [known["value"], *known["aliases"]]
    listed = filter(str.strip, map(str, [answers] if isinstance(answers, str) else answers))
    id = next((record[key] for key in ("id", "QuestionId", "question_id") if key in record), "")
    return Question(str(id), record.get("question") or record["Question"], tuple(dict.fromkeys(listed)), family=name)


OPEN_DOMAIN = {name: partial(load_open_domain, name) for name in ("nq", "triviaqa", "popqa", "bamboogle")}
