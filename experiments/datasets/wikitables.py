"""`wikitables`: WikiTableQuestions, with the title of the table in front of the question, because the question alone does not say which is meant.

Training questions are those of the training split, held-out ones those of the test split, whose tables are all others. A question has a gold step
where its answer is a cell of its table; where it has to be worked out (counts, differences), plan turns are not judged, the final answer is.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from experiments.config import DataConfig, EvaluationConfig, RunConfigError
from experiments.datasets.dataset import Dataset, built_from
from experiments.question_file import DataError, read_lines
from retrieval_actors.sources.reading import read_source
from rollout.records import GoldStep, Question

CARD = ("Table Retriever", "tables from encyclopedia articles, with their titles")


def load_wikitables(data: DataConfig, evaluation: EvaluationConfig) -> Dataset:
    folder = Path(data.path or Path(data.folder) / "wikitablequestions")
    tables = _tables(folder)
    gold_passages: dict[str, tuple[str, ...]] = {}
    wanted = evaluation.validation_questions + data.train_questions
    training = _drawn(_questions(folder / "questions_training.jsonl", tables, gold_passages), wanted, data.seed)
    heldout = _drawn(_questions(folder / "questions_pristine-unseen-tables.jsonl", tables, gold_passages), evaluation.questions, data.seed)
    validation, train = training[: evaluation.validation_questions], training[evaluation.validation_questions :]
    if not train:
        raise RunConfigError(f"evaluation.validation_questions={evaluation.validation_questions} leaves nothing of {folder} to train on")
    needed = {id for question in (*training, *heldout) for id in gold_passages[question.id]}
    source = built_from("table", data, CARD, lambda: list(read_source(folder / "tables.jsonl", "tables")), needed)
    counts = {"questions": len(training) + len(heldout), "without_gold_steps": sum(q.gold_steps is None for q in (*training, *heldout))}
    return Dataset(train, validation, heldout, (source,), (source,), gold_passages, counts)


def _tables(folder: Path) -> dict[str, tuple[str, set[str]]]:
    """Table id -> its title, and its cells in lower case."""
    return {
        record["table_id"]: (record["title"], {str(cell).strip().lower() for row in record["rows"] for cell in row})
        for _, record in read_lines(folder / "tables.jsonl")
    }


def _questions(path: Path, tables: dict[str, tuple[str, set[str]]], gold_passages: dict[str, tuple[str, ...]]) -> list[Question]:
    """The questions of a file; what they need is added to `gold_passages`. Raises DataError with FILE:LINE."""
    found = []
    for where, record in read_lines(path):
        try:
            found.append(_question(record, *tables[record["gold_table_id"]]))
            gold_passages[record["id"]] = (record["gold_table_id"],)
        except (KeyError, TypeError, IndexError) as error:
            raise DataError(f"{where}: not a WikiTableQuestions record ({type(error).__name__}: {error})") from None
    return found


def _question(record: dict[str, Any], title: str, cells: set[str]) -> Question:
    text, answers = f'In the table "{title}": {record["question"]}', tuple(record["answers"])
    is_cell = len(answers) == 1 and answers[0].strip().lower() in cells
    gold_steps = (GoldStep(text, "table", answers[0], (title,)),) if is_cell else None
    return Question(record["id"], text, answers, None, gold_steps, "cell" if is_cell else "worked_out")


def _drawn(questions: list[Question], wanted: int, seed: int) -> list[Question]:
    random.Random(seed).shuffle(questions)
    return questions[:wanted]
