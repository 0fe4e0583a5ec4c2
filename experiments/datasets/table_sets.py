"""Questions over the tables of encyclopedia articles: `ottqa` and `wikitables`.

`ottqa`: OTT-QA's development questions over its tables and the passages that these link to. Gold steps come from the traces, which are string
matches: for an answer in a passage, first the table cell that links to it. A trace with several cells gives no gold steps.
`wikitables`: WikiTableQuestions, each with the title of its table in front, as the question alone does not identify the table. There is a gold
step if the answer is a cell of the table; if it is computed (a count, a difference), only the final answer is judged."""

import random
import re
from pathlib import Path
from typing import Any

from experiments.config import DataConfig, EvaluationConfig
from experiments.datasets.dataset import Dataset, built_from, made_of_records, split
from retrieval_actors.sources.data_files import read_records
from retrieval_actors.sources.read_passages import read_source
from rollout.records import GoldStep, Question

TABLES = ("Table Retriever", "tables from encyclopedia articles, with their titles")
TEXTS = ("Text Retriever", "first paragraphs of encyclopedia articles about people, places, teams and works")
_WORD = r"(?!(?:that|who|which|whose|where|with|on)\b)[\w'-]+"
# The beginning of a question, up to the words that describe its subject instead of naming it.
ASKED_OF = re.compile(rf"((?:what|which|who|when|where|how)(?: {_WORD}){{1,7}} (?:of|for|by|in|at|from|to)) (?:the|an?) ", re.IGNORECASE)
GoldPassages = dict[str, tuple[str, ...]]  # Question id -> ids of its gold table and passages


def load_ottqa(data: DataConfig, evaluation: EvaluationConfig) -> Dataset:
    folder = Path(data.path or Path(data.folder) / "ottqa_dev")
    gold: GoldPassages = {}

    def question(where: str, record: dict[str, Any]) -> Question:
        gold[record["id"]] = (record["gold_table_id"], *record["gold_passage_ids"])
        steps, family = _linked_steps(record), f"answer_in_{record['answer_in']}"
        return Question(record["id"], record["question"], (record["answer"],), None, steps, family)

    questions = list(made_of_records(folder / "questions_dev.jsonl", "an OTT-QA record", question))
    sources = (
        built_from("text", data, TEXTS, lambda: list(read_source(folder / "passages.jsonl"))),
        built_from("table", data, TABLES, lambda: list(read_source(folder / "tables.jsonl", "tables"))),
    )
    return Dataset(*split(questions, data, evaluation), sources, sources, gold)


def _linked_steps(record: dict[str, Any]) -> tuple[GoldStep, ...] | None:
    question, answer = record["question"], record["answer"]
    cells = {cell for cell, _, _, where in record["answer_nodes"] if where == record["answer_in"]}
    if record["answer_in"] == "table":
        return (GoldStep(question, "table", answer),)
    if len(cells) != 1:
        return None
    (cell,) = cells
    return GoldStep(question, "table", cell), GoldStep(query_about(cell, question), "text", answer, (cell,))


def query_about(cell: str, question: str) -> str:
    """The question, about `cell`: "What is the height of the player that scored twice ?", Foo Bar -> "What is the height of Foo Bar?"."""
    asked = ASKED_OF.match(question)
    return f"{asked[1]} {cell}?" if asked else f"About {cell}: {question}"


def load_wikitables(data: DataConfig, evaluation: EvaluationConfig) -> Dataset:
    """Held-out questions come from the test split, whose tables do not occur in the training split."""
    folder = Path(data.path or Path(data.folder) / "wikitablequestions")
    tables = {
        record["table_id"]: (record["title"], {str(cell).strip().lower() for row in record["rows"] for cell in row})
        for _, record in read_records(folder / "tables.jsonl")
    }
    gold: GoldPassages = {}

    def question(where: str, record: dict[str, Any]) -> Question:
        gold[record["id"]] = (record["gold_table_id"],)
        title, cells = tables[record["gold_table_id"]]
        text, answers = f'In the table "{title}": {record["question"]}', tuple(record["answers"])
        is_cell = len(answers) == 1 and answers[0].strip().lower() in cells
        gold_steps = (GoldStep(text, "table", answers[0], (title,)),) if is_cell else None
        return Question(record["id"], text, answers, None, gold_steps, "cell" if is_cell else "worked_out")

    def drawn(file: str, wanted: int) -> list[Question]:
        questions = list(made_of_records(folder / file, "a WikiTableQuestions record", question))
        random.Random(data.seed).shuffle(questions)
        return questions[:wanted]

    training = drawn("questions_training.jsonl", evaluation.validation_questions + data.train_questions)
    heldout = drawn("questions_pristine-unseen-tables.jsonl", evaluation.questions)
    source = built_from("table", data, TABLES, lambda: list(read_source(folder / "tables.jsonl", "tables")))
    validation, train = training[: evaluation.validation_questions], training[evaluation.validation_questions :]
    return Dataset(train, validation, heldout, (source,), (source,), gold)
