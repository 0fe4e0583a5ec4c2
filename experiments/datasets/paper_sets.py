"""The six sets that R1-Router is evaluated on, as published: questions and answers, without gold steps and passages. For evaluation only.
Questions are taken in the order of the file. Knowledge bases are those in `retrieval.folders` (the paper's: all of Wikipedia, M-BEIR,
Open-WikiTable). Pictures are looked up in `data.image_folder` by their id.

`recorded_steps`: the step data set that R1-Router publishes: recorded teacher turns, each with its prompt and its gold. A line is one
trajectory: `images` and `steps` of `step_type` `ret` (plan; gold `{query, retriever: [name]}`) or `ans` (gold text, or a list of texts).
The last `ans` is the final turn. `<image>` in a prompt marks where the picture stands."""

import itertools
import random
from functools import partial
from pathlib import Path
from typing import Any

from experiments.config import DataConfig, EvaluationConfig
from experiments.datasets.dataset import Dataset, made_of_records, place_of
from experiments.datasets.question_file import read_image
from rewards.answer_metrics import range_answers
from rollout.prompts import IMAGE_MARK, image_first
from rollout.records import GoldStep, Image, Question, RecordedTurn, TurnKind
from rollout.turn_parser import STOP

FILES = {
    "paper_2wiki": "2wikimultihopqa_val.jsonl",
    "infoseek": "infoseek_val.jsonl",
    "webqa": "webqa_val.jsonl",
    "dynvqa": "DynVQA_en.202412.jsonl",
    "openwikitable": "openwikitqa_val.jsonl",
    "tabfact": "tabfact_val.jsonl",
}
RETRIEVERS = {"text retriever": "text", "text image retriever": "text_image", "table retriever": "table", "none": ""}
ORIGIN = "Origin question:"
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


def read_recorded_steps(path: str | Path, image_folder: str | Path | None = None) -> tuple[list[list[RecordedTurn]], int]:
    """The turns of each line of the file, and the number of pictures missing in `image_folder`: their turns are text only.
    Raises DataError with FILE:LINE for a line of another form, and for a picture that does not decode."""
    missing = 0

    def turns(where: str, record: dict[str, Any]) -> list[RecordedTurn]:
        nonlocal missing
        name = Path(record["images"][0]).name if record["images"] else ""
        found = bool(name and image_folder) and (Path(image_folder or "") / name).is_file()
        image = read_image(name, Path(image_folder or "")) if found else None
        missing += bool(record["images"]) and image is None
        steps = record["steps"]
        return [_turn(where, place, place == len(steps) - 1, step, image) for place, step in enumerate(steps)]

    return list(made_of_records(Path(path), "a recorded trajectory", turns)), missing


def _turn(where: str, place: int, last: bool, step: dict[str, Any], image: Image | None) -> RecordedTurn:
    kind: TurnKind = "plan" if step["step_type"] == "ret" else "final" if last else "answer"
    gold, marked = step["answer"], IMAGE_MARK in step["problem"]
    answers: tuple[str, ...] = ()
    if kind == "plan":
        names = gold["retriever"]
        if len(names) != 1 or names[0].lower() not in RETRIEVERS:
            raise ValueError(f"retriever is {names!r}, expected one of {', '.join(sorted(RETRIEVERS))}")
        kb = RETRIEVERS[names[0].lower()]
        target = GoldStep(gold["query"].strip() if kb else STOP, kb, "")
    else:
        answers = (gold.strip(),) if isinstance(gold, str) else tuple(text.strip() for text in gold)
        target = GoldStep("", "", answers[0])
    user = step["problem"].replace(IMAGE_MARK, "").strip()
    origin = user.removeprefix(ORIGIN).strip().split("\n", 1)[0] if user.startswith(ORIGIN) else user.rsplit("Question:", 1)[-1].strip()
    shown = image if marked else None
    question = Question(f"{where}#{place}", origin, answers, shown, None, f"recorded_{kind}")
    return RecordedTurn(question, kind, step["system"].strip(), user, target, shown, marked and image_first(step["problem"]))


def load_recorded_steps(data: DataConfig, evaluation: EvaluationConfig) -> Dataset:
    """Whole trajectories are held out, as prompts of later turns hold the answers of earlier ones."""
    path = Path(data.path or Path(data.folder) / "r1router/grpo_dataset_valid_new.jsonl")
    trajectories, missing = read_recorded_steps(path, data.image_folder or None)
    random.Random(data.seed).shuffle(trajectories)
    parts: list[list[RecordedTurn]] = [[], []]
    for part, wanted in zip(parts, (evaluation.questions, evaluation.validation_questions), strict=True):
        while trajectories and len(part) < wanted:
            part += trajectories.pop()
    train = [turn for trajectory in trajectories for turn in trajectory]
    note = f"{path}: {missing} pictures are not in data.image_folder={data.image_folder!r}; their turns are text only"
    return Dataset(train, parts[1], parts[0], notes=(note,) if missing else ())
