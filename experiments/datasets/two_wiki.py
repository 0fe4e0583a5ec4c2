"""`2wiki`: 2WikiMultihopQA with the passages of HippoRAG's 1,000-question subset: real questions over one real text knowledge base."""

from pathlib import Path
from typing import Any

from experiments.config import DataConfig, EvaluationConfig
from experiments.datasets.dataset import Dataset, built_from, made_of_records, split
from retrieval_actors.sources.read_passages import read_source
from rollout.records import GoldStep, Question

CARD = ("Text Retriever", "first paragraphs of encyclopedia articles about people, films, places and works")
QUERIES = {  # Relation -> query; `gold_query` has the queries of other relations
    "award received": "What award did {subject} receive?",
    "cause of death": "How did {subject} die?",
    "country": "In which country is {subject}?",
    "country of citizenship": "What is the nationality of {subject}?",
    "date of birth": "When was {subject} born?",
    "date of death": "When did {subject} die?",
    "educated at": "Where was {subject} educated?",
    "founded by": "Who founded {subject}?",
    "inception": "When was {subject} founded?",
    "place of birth": "Where was {subject} born?",
    "place of burial": "Where is {subject} buried?",
    "place of death": "Where did {subject} die?",
    "place of detention": "Where was {subject} imprisoned?",
    "publication date": "When was {subject} released?",
}
PEOPLE = frozenset({"director", "father", "mother", "spouse", "child", "sibling", "composer", "performer", "producer", "editor"})


def gold_query(relation: str, subject: str) -> str:
    other = "Who is the {relation} of {subject}?" if relation in PEOPLE else "What is the {relation} of {subject}?"
    return QUERIES.get(relation, other).format(relation=relation, subject=subject)


def read_two_wiki(folder: str | Path) -> tuple[list[Question], dict[str, tuple[str, ...]]]:
    """The questions of `questions.jsonl`, with a gold step for each evidence triple (subject, relation, object); and question id -> ids of its
    gold passages in `corpus.jsonl`. Raises DataError with FILE:LINE for a record without these fields."""
    gold_passages = {}

    def question(where: str, record: dict[str, Any]) -> Question:
        gold_passages[record["id"]] = tuple(map(str, record["gold_passage_idx"]))
        steps = tuple(GoldStep(gold_query(link, subject), "text", target, (subject,)) for subject, link, target in record["evidence"])
        return Question(record["id"], record["question"], (record["answer"],), None, steps, record["type"])

    return list(made_of_records(Path(folder) / "questions.jsonl", "a 2Wiki record", question)), gold_passages


def load_two_wiki(data: DataConfig, evaluation: EvaluationConfig) -> Dataset:
    folder = Path(data.path or Path(data.folder) / "2wiki_hipporag1000")
    questions, gold_passages = read_two_wiki(folder)
    source = built_from("text", data, CARD, lambda: list(read_source(folder / "corpus.jsonl")))
    return Dataset(*split(questions, data, evaluation), (source,), (source,), gold_passages)
