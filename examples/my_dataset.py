"""A data set of your own: countries and their capitals, with the knowledge base that answers them.

    cd examples && r1-router train laptop.yaml data.name=my_dataset:load data.path=capitals.csv

MODULE:NAME is looked up in the folder that the command is started in.
"""

from typing import Any

from experiments.config import DataConfig, EvaluationConfig
from experiments.datasets.dataset import Dataset, built_from, made_of_records, split
from retrieval_actors.records import Passage
from rollout.records import GoldStep, Question


def load(data: DataConfig, evaluation: EvaluationConfig) -> Dataset:
    """`data.path`: records with `country` and `capital`."""

    def question(where: str, record: dict[str, Any]) -> Question:
        text, capital = f"What is the capital of {record['country']}?", record["capital"]
        return Question(where, text, (capital,), gold_steps=(GoldStep(text, "text", capital, (record["country"],)),))

    questions = list(made_of_records(data.path, "a country", question))
    passages = [Passage(q.id, f"{q.answers[0]} is the capital of {q.gold_steps[0].entities[0]}.") for q in questions if q.gold_steps]
    kb = built_from("text", data, ("Text Retriever", "sentences about countries"), lambda: passages)
    return Dataset(*split(questions, data, evaluation), training_kbs=(kb,), evaluation_kbs=(kb,))
