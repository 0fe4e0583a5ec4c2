"""The six sets that R1-Router is evaluated on, as published: questions and answers, without gold steps and passages. For evaluation only.
Questions are taken in the order of the file. Knowledge bases are those in `retrieval.folders` (the paper's: all of Wikipedia, M-BEIR,
Open-WikiTable). Pictures are looked up in `data.image_folder` by their id."""

import itertools
from functools import partial
from pathlib import Path
from typing import Any

from experiments.config import DataConfig, EvaluationConfig
from experiments.datasets.dataset import Dataset, made_of_records, place_of
from experiments.datasets.question_file import read_image
from rewards.answer_metrics import range_answers
from rollout.records import Image, Question

FILES = {
    "paper_2wiki": "2wikimultihopqa_val.jsonl",
    "infoseek": "infoseek_val.jsonl",
    "webqa": "webqa_val.jsonl",
    "dynvqa": "DynVQA_en.202412.jsonl",
    "openwikitable": "openwikitqa_val.jsonl",
    "tabfact": "tabfact_val.jsonl",
}
PICTURED = ("infoseek", "webqa", "dynvqa")
SUFFIXES = (".jpg", ".jpeg", ".png", ".JPEG")


def load_paper_set(name: str, data: DataConfig, evaluation: EvaluationConfig) -> Dataset:
    """The first `evaluation.questions`. Raises DataError with FILE:LINE for a line of another form."""
    numbers, suffixes = itertools.count(), SUFFIXES if data.image_folder else ()

    def picture(id: str) -> Image | None:
        names = [f"{id}{suffix}" for suffix in suffixes if (Path(data.image_folder) / f"{id}{suffix}").is_file()]
        return read_image(names[0], Path(data.image_folder)) if names else None

    def question(where: str, record: dict[str, Any]) -> Question:
        image = picture(str(record["image_id"])) if name in PICTURED else None
        answers, limits = _answers(record)
        return Question(f"{name}-{next(numbers)}", record["question"], answers, image, None, name, limits)

    path = place_of(data, f"r1router/{FILES[name]}")
    path = path / FILES[name] if path.is_dir() else path
    questions = list(itertools.islice(made_of_records(path, f"a record of {name}", question), evaluation.questions))
    missing = sum(question.image is None for question in questions) if name in PICTURED else 0
    note = (
        f"{name}: {missing} of {len(questions)} pictures are not in data.image_folder={data.image_folder!r} (expected IMAGE_ID.jpg or .png); "
        "those questions are asked without a picture, so results do not compare with the paper's"
    )
    return Dataset((), (), questions, notes=(note,) if missing else ())


def _answers(record: dict[str, Any]) -> tuple[tuple[str, ...], tuple[float, float] | None]:
    """All right answers and, for a numeric question of InfoSeek, the lowest and the highest right number."""
    if "answer_eval" not in record:
        answer = record["answer"]
        return tuple(map(str, answer)) if isinstance(answer, list) else (str(answer),), None
    first = record["answer_eval"][0]
    if not isinstance(first, dict):
        return tuple(map(str, record["answer_eval"])), None  # a name and its aliases
    limits = float(first["range"][0]), float(first["range"][1])
    return tuple(range_answers(*limits)), limits


PAPER_SETS = {name: partial(load_paper_set, name) for name in FILES}
