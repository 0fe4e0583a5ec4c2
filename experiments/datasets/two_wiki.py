"""`2wiki`: 2WikiMultihopQA with the passages of HippoRAG's 1,000-question subset: real questions over one real text knowledge base."""

from __future__ import annotations

from pathlib import Path

from experiments.config import DataConfig, EvaluationConfig
from experiments.datasets.dataset import Dataset, built_from, split
from experiments.question_file import DataError, read_lines
from retrieval_actors.sources.reading import read_source
from rollout.records import GoldStep, Question

RETRIEVER_NAME, DESCRIPTION = "Text Retriever", "first paragraphs of encyclopedia articles about people, films, places and works"


def read_two_wiki(folder: str | Path) -> tuple[list[Question], dict[str, tuple[str, ...]]]:
    """The questions of `questions.jsonl` and, for each id, the ids of its gold passages in `corpus.jsonl`.

    Gold steps come from the evidence triples (subject, relation, object): "What is the {relation} of {subject}?", answered by the object.
    Raises DataError with FILE:LINE for a record without them.
    """
    questions, gold_passages = [], {}
    for where, record in read_lines(Path(folder) / "questions.jsonl"):
        try:
            steps = tuple(
                GoldStep(f"What is the {relation} of {subject}?", "text", target, (subject,))
                for subject, relation, target in record["evidence"]
            )
            questions.append(
                Question(
                    id=record["id"],
                    text=record["question"],
                    answers=(record["answer"],),
                    gold_steps=steps,
                    family=record["type"],
                )
            )
            gold_passages[record["id"]] = tuple(str(index) for index in record["gold_passage_idx"])
        except (KeyError, ValueError, TypeError) as error:
            raise DataError(f"{where}: not a 2Wiki record ({type(error).__name__}: {error})") from None
    return questions, gold_passages


def load_two_wiki(data: DataConfig, evaluation: EvaluationConfig) -> Dataset:
    folder = Path(data.path or Path(data.folder) / "2wiki_hipporag1000")
    questions, gold_passages = read_two_wiki(folder)
    train, validation, heldout = split(questions, data, evaluation)
    needed = {id for question in (*train, *validation, *heldout) for id in gold_passages[question.id]}
    source = built_from("text", data, (RETRIEVER_NAME, DESCRIPTION), lambda: list(read_source(folder / "corpus.jsonl")), needed)
    return Dataset(train, validation, heldout, (source,), (source,), gold_passages, {"questions": len(questions)})
