"""`recorded_steps`: the step data set that R1-Router publishes: recorded teacher turns, each with its prompt and its gold. A line is one
trajectory: `images` and `steps` of `step_type` `ret` (plan; gold `{query, retriever: [name]}`) or `ans` (gold text, or a list of texts).
The last `ans` is the final turn. `<image>` in a prompt marks where the picture stands."""

import random
from pathlib import Path
from typing import Any

from experiments.config import DataConfig, EvaluationConfig
from experiments.datasets.dataset import Dataset, made_of_records
from experiments.datasets.question_file import read_image
from rollout.prompts import IMAGE_MARK, image_first
from rollout.records import GoldStep, Image, Question, RecordedTurn, TurnKind
from rollout.turn_parser import STOP

RETRIEVERS = {"text retriever": "text", "text image retriever": "text_image", "table retriever": "table", "none": ""}
ORIGIN = "Origin question:"


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
