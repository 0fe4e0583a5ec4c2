"""The six sets that R1-Router is evaluated on, in their published form: questions and answers, without gold steps and without passages.

For evaluation only. Questions are taken in the order of the file, so that the first N are everybody's first N. Knowledge bases are named in
`retrieval.folders` (the paper's: all of Wikipedia, M-BEIR, Open-WikiTable). Pictures are looked up in `data.image_folder` by their id.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from experiments.config import DataConfig, EvaluationConfig
from experiments.datasets.dataset import Dataset, place_of
from experiments.question_file import DataError, read_image, read_lines
from rewards.paper_evaluator import range_answers
from rollout.records import Image, Question

SUFFIXES = (".jpg", ".jpeg", ".png", ".JPEG")


def one(record: dict[str, Any]) -> tuple[str, ...]:
    return (str(record["answer"]),)


def several(record: dict[str, Any]) -> tuple[str, ...]:
    return tuple(str(answer) for answer in record["answer"])


def infoseek(record: dict[str, Any]) -> tuple[str, ...]:
    """Names and their aliases, or every number of a range that the paper's evaluator takes for right."""
    limits = infoseek_range(record)
    return tuple(range_answers(*limits)) if limits else tuple(map(str, record["answer_eval"]))


def infoseek_range(record: dict[str, Any]) -> tuple[float, float] | None:
    """Of a numeric question: the lowest and the highest right number."""
    first = record["answer_eval"][0]
    return (float(first["range"][0]), float(first["range"][1])) if isinstance(first, dict) else None


def no_range(record: dict[str, Any]) -> None:
    return None


@dataclass(frozen=True)
class PaperSet:
    file: str
    answers: Callable[[dict[str, Any]], tuple[str, ...]]
    pictured: bool = False
    limits: Callable[[dict[str, Any]], tuple[float, float] | None] = no_range


SETS = {
    "paper_2wiki": PaperSet("2wikimultihopqa_val.jsonl", one),
    "infoseek": PaperSet("infoseek_val.jsonl", infoseek, pictured=True, limits=infoseek_range),
    "webqa": PaperSet("webqa_val.jsonl", several, pictured=True),
    "dynvqa": PaperSet("DynVQA_en.202412.jsonl", several, pictured=True),
    "openwikitable": PaperSet("openwikitqa_val.jsonl", one),
    "tabfact": PaperSet("tabfact_val.jsonl", one),
}


def load_paper_set(name: str, data: DataConfig, evaluation: EvaluationConfig) -> Dataset:
    """The first `evaluation.questions`. Raises DataError with FILE:LINE for a line of another form."""
    published = SETS[name]
    path = place_of(data, f"r1router/{published.file}")
    questions: list[Question] = []
    pictures = 0
    for number, (where, record) in enumerate(read_lines(path)):
        if number == evaluation.questions:
            break
        try:
            image = _picture(where, str(record["image_id"]), data.image_folder) if published.pictured else None
            answers, limits = published.answers(record), published.limits(record)
            questions.append(Question(f"{name}-{number}", record["question"], answers, image, None, name, limits))
        except (KeyError, TypeError, IndexError) as error:
            raise DataError(f"{where}: not a record of {name} ({type(error).__name__}: {error})") from None
        pictures += image is not None
    counts: dict[str, int] = {"questions": len(questions)}
    notes: tuple[str, ...] = ()
    if published.pictured:
        missing = counts["missing_images"] = len(questions) - pictures
        if missing:
            notes = (
                f"{name}: {missing} of {len(questions)} pictures are not in data.image_folder={data.image_folder!r} (expected IMAGE_ID.jpg or "
                ".png); those questions are asked without, and their figures are not the paper's",
            )
    return Dataset((), (), questions, counts=counts, notes=notes)


def _picture(where: str, image_id: str, folder: str) -> Image | None:
    for suffix in SUFFIXES if folder else ():
        if (Path(folder) / f"{image_id}{suffix}").is_file():
            return read_image(Path(f"{image_id}{suffix}"), Path(folder), where)
    return None


PAPER_SETS = {name: partial(load_paper_set, name) for name in SETS}
