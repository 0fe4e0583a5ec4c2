"""`recorded_steps`: the step data set that R1-Router publishes: recorded teacher turns, each with its prompt and its gold.

A line is one trajectory: `images` and `steps` of `step_type` `ret` (plan; gold `{query, retriever: [name]}`) or `ans` (gold text, or a list
of texts). The last `ans` is the final turn. `<image>` in a prompt marks where the picture stands.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.config import DataConfig, EvaluationConfig, RunConfigError
from experiments.datasets.dataset import Dataset
from experiments.question_file import DataError, read_image, read_lines
from rollout.episode import RecordedTurn
from rollout.prompts import STOP
from rollout.records import GoldStep, Image, Question, TurnKind

RETRIEVERS = {"text retriever": "text", "text image retriever": "text_image", "table retriever": "table", "none": ""}
IMAGE_MARK = "<image>"
ORIGIN = "Origin question:"


@dataclass
class RecordedSteps:
    trajectories: list[list[RecordedTurn]] = field(default_factory=list)
    """The turns of each line of the file."""
    counts: Counter[str] = field(default_factory=Counter)
    """How many turns of each kind, and how many pictures were missing (their turns are text only)."""


def read_recorded_steps(path: str | Path, image_folder: str | Path | None = None) -> RecordedSteps:
    """All turns of the file. Pictures are looked up in `image_folder` by their file name; without it, every turn is text only.

    Raises DataError with FILE:LINE for a line of another form, and for a picture that does not decode.
    """
    read = RecordedSteps()
    for where, record in read_lines(Path(path)):
        try:
            image = _image(where, record["images"], image_folder, read.counts)
            last = len(record["steps"]) - 1
            turns = [_turn(where, place, place == last, step, image) for place, step in enumerate(record["steps"])]
        except (KeyError, TypeError, IndexError, AttributeError) as error:
            raise DataError(f"{where}: not a recorded trajectory ({type(error).__name__}: {error})") from None
        read.counts.update(turn.kind for turn in turns)
        read.trajectories.append(turns)
    return read


def _turn(where: str, place: int, last: bool, step: dict[str, Any], image: Image | None) -> RecordedTurn:
    kind: TurnKind = "plan" if step["step_type"] == "ret" else "final" if last else "answer"
    gold, marked = step["answer"], IMAGE_MARK in step["problem"]
    answers: tuple[str, ...] = ()
    if kind == "plan":
        target = _plan_gold(where, gold)
    else:
        answers = (gold.strip(),) if isinstance(gold, str) else tuple(text.strip() for text in gold)
        target = GoldStep("", "", answers[0])
    user = step["problem"].replace(IMAGE_MARK, "").strip()
    origin = user.removeprefix(ORIGIN).strip().split("\n", 1)[0] if user.startswith(ORIGIN) else user.rsplit("Question:", 1)[-1].strip()
    shown = image if marked else None
    question = Question(f"{where}#{place}", origin, answers, shown, None, f"recorded_{kind}")
    return RecordedTurn(question=question, kind=kind, system=step["system"].strip(), user=user, target=target, image=shown)


def _plan_gold(where: str, gold: dict[str, Any]) -> GoldStep:
    names = gold["retriever"]
    if len(names) != 1 or names[0].lower() not in RETRIEVERS:
        raise DataError(f"{where}: retriever is {names!r}, expected one of {', '.join(sorted(RETRIEVERS))}")
    kb = RETRIEVERS[names[0].lower()]
    return GoldStep(gold["query"].strip() if kb else STOP, kb, "")


def _image(where: str, names: list[str], folder: str | Path | None, counts: Counter[str]) -> Image | None:
    if not names:
        return None
    name = Path(names[0]).name
    if not folder or not (Path(folder) / name).is_file():
        counts["missing_images"] += 1
        return None
    return read_image(Path(name), Path(folder), where)


def load_recorded_steps(data: DataConfig, evaluation: EvaluationConfig) -> Dataset:
    """Whole trajectories are held out: turns of one trajectory know each other's answers."""
    path = Path(data.path or Path(data.folder) / "r1router/grpo_dataset_valid_new.jsonl")
    read = read_recorded_steps(path, data.image_folder or None)
    trajectories = list(read.trajectories)
    random.Random(data.seed).shuffle(trajectories)
    parts: list[list[RecordedTurn]] = [[], []]
    for part, wanted in zip(parts, (evaluation.questions, evaluation.validation_questions), strict=True):
        while trajectories and len(part) < wanted:
            part += trajectories.pop()
    train = [turn for trajectory in trajectories for turn in trajectory]
    if not train:
        raise RunConfigError(f"evaluation.questions={evaluation.questions} leaves nothing of {path} to train on; ask for fewer")
    missing = read.counts["missing_images"]
    notes = (
        (f"{path}: {missing} pictures are not in data.image_folder={data.image_folder!r}; their turns are text only",) if missing else ()
    )
    return Dataset(train, parts[1], parts[0], counts=dict(read.counts), notes=notes)
