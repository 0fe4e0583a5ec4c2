"""`atlas_2wiki`: the real atlas and 2WikiMultihopQA as one data set with three knowledge bases; both kinds of text are in one of them.

Questions are balanced, because a policy that sees one kind of first route more often than the others learns that route for every question:
in training, a quarter each begin with a picture, with a table, with a text of the atlas, and with a text of 2Wiki. Among those of one kind the
families take turns, so that chains are as frequent as single facts. Validation and held-out questions are half atlas, half 2Wiki. The atlas is
split by country, 2Wiki by the id of the question, so the parts stay apart however many questions are asked for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import zip_longest

from experiments.config import DataConfig, EvaluationConfig
from experiments.datasets.dataset import Dataset, place_of
from experiments.datasets.real_atlas import load_real_atlas
from experiments.datasets.two_wiki import load_two_wiki
from experiments.worlds.atlas import belongs
from retrieval_actors.records import Passage
from rollout.records import Question, RecordedTurn

MOST_FACTS = 3  # That a question needs, as an episode has three searches; the questions of 2Wiki that need more are left out
MANY = 10**6
ALL = EvaluationConfig(questions=MANY, validation_questions=MANY)


def load_atlas_2wiki(data: DataConfig, evaluation: EvaluationConfig) -> Dataset:
    folder = place_of(data, ".")
    atlas = load_real_atlas(replace(data, path=str(folder), train_questions=MANY), ALL)
    wiki = load_two_wiki(replace(data, path=str(folder / "2wiki_hipporag1000")), ALL)
    answerable = [question for question in _named("2wiki", wiki.heldout) if len(question.gold_steps or ()) <= MOST_FACTS]

    def of_wiki(split: str) -> list[Question]:
        return families_in_turn(question for question in answerable if belongs(question.id, split))

    def halves(split: str, of_atlas: list[Question], most: int) -> list[Question]:
        return [*families_in_turn(of_atlas)[: most - most // 2], *of_wiki(split)[: most // 2]]

    kinds = [of_wiki("train")]
    for kb in atlas.training_kbs:
        kinds.append(families_in_turn(q for q in _named("atlas", atlas.train) if kb.name in (q.gold_steps or ())[0].kbs))
    each = min(data.train_questions // len(kinds), *map(len, kinds))
    train = [question for kind in kinds for question in kind[:each]]
    validation = halves("validation", _named("atlas", atlas.validation), evaluation.validation_questions)
    heldout = halves("heldout", _named("atlas", atlas.heldout), evaluation.questions)
    first, *others = atlas.training_kbs
    both = (first, *wiki.training_kbs)

    def texts() -> list[Passage]:
        return [passage for source in both if source.passages for passage in source.passages()]

    text = replace(first, description="; ".join(source.description for source in both), passages=texts)
    gold_passages = {f"2wiki-{id}": found for id, found in wiki.gold_passages.items()}
    return Dataset(train, validation, heldout, (text, *others), (text, *others), gold_passages)


def families_in_turn(questions: Iterable[Question]) -> list[Question]:
    """The first question of each family, then the second ones, ...: equally many of each, until a family is used up."""
    families: dict[str, list[Question]] = {}
    for question in questions:
        families.setdefault(question.family, []).append(question)
    return [question for row in zip_longest(*families.values()) for question in row if question is not None]


def _named(source: str, questions: Iterable[Question | RecordedTurn]) -> list[Question]:
    return [replace(q, id=f"{source}-{q.id}", family=f"{source}_{q.family}") for q in questions if isinstance(q, Question)]
