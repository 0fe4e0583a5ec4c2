"""`ottqa`: OTT-QA's development questions over its tables and the passages that they link to: two hops, from a table to a text.

Gold steps are made from the traces that come with the questions: a question whose answer stands in a passage needs the table that names the passage
first, and then the passage. The traces are string matches; where they name several cells, nobody knows which is meant, and the plan turns of the
question are not judged.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiments.config import DataConfig, EvaluationConfig
from experiments.datasets.dataset import Dataset, built_from, split
from experiments.question_file import DataError, read_lines
from retrieval_actors.sources.reading import read_source
from rollout.records import GoldStep, Question

TABLES = ("Table Retriever", "tables from encyclopedia articles, with their titles")
TEXTS = ("Text Retriever", "first paragraphs of encyclopedia articles about people, places, teams and works")


def load_ottqa(data: DataConfig, evaluation: EvaluationConfig) -> Dataset:
    folder = Path(data.path or Path(data.folder) / "ottqa_dev")
    questions, gold_passages = read_ottqa(folder)
    train, validation, heldout = split(questions, data, evaluation)
    needed = {id for question in (*train, *validation, *heldout) for id in gold_passages[question.id]}
    sources = (
        built_from("text", data, TEXTS, lambda: list(read_source(folder / "passages.jsonl")), needed),
        built_from("table", data, TABLES, lambda: list(read_source(folder / "tables.jsonl", "tables")), needed),
    )
    unknown = sum(question.gold_steps is None for question in questions)
    return Dataset(
        train, validation, heldout, sources, sources, gold_passages, {"questions": len(questions), "without_gold_steps": unknown}
    )


def read_ottqa(folder: Path) -> tuple[list[Question], dict[str, tuple[str, ...]]]:
    """The questions and, for each id, the ids of its gold table and gold passages. Raises DataError with FILE:LINE."""
    questions, gold_passages = [], {}
    for where, record in read_lines(folder / "questions_dev.jsonl"):
        try:
            questions.append(
                Question(
                    record["id"], record["question"], (record["answer"],), None, _gold_steps(record), f"answer_in_{record['answer_in']}"
                )
            )
            gold_passages[record["id"]] = (record["gold_table_id"], *record["gold_passage_ids"])
        except (KeyError, TypeError, IndexError) as error:
            raise DataError(f"{where}: not an OTT-QA record ({type(error).__name__}: {error})") from None
    return questions, gold_passages


def _gold_steps(record: dict[str, Any]) -> tuple[GoldStep, ...] | None:
    question, answer = record["question"], record["answer"]
    cells = {cell for cell, _, _, where in record["answer_nodes"] if where == record["answer_in"]}
    if record["answer_in"] == "table":
        return (GoldStep(question, "table", answer),)
    if len(cells) != 1:
        return None
    (cell,) = cells
    return (
        GoldStep(f"Which entry of the table is meant: {question}", "table", cell),
        GoldStep(f"About {cell}: {question}", "text", answer, (cell,)),
    )
