"""The real atlas joined with 2WikiMultihopQA: balanced, and nothing that is measured is trained on."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from made_world import COUNTRIES, made_world

from experiments.config import DataConfig, EvaluationConfig, RunConfigError
from experiments.datasets import Dataset, load_dataset

SHARED = (Path(__file__).parents[3] / "../shared/data").resolve()
MEASURED = EvaluationConfig(questions=200, validation_questions=64)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return made_world(tmp_path_factory.mktemp("world"))


def loaded(folder: Path, evaluation: EvaluationConfig = MEASURED, **settings) -> Dataset:
    return load_dataset(DataConfig(name="atlas_2wiki", path=str(folder), **settings), evaluation, {})


def kind_of(question) -> str:
    return "2wiki" if question.id.startswith("2wiki-") else question.gold_steps[0].kbs[0]


def check_parts_are_apart(data: Dataset) -> None:
    parts = (data.train, data.validation, data.heldout)
    owners = [{question.id.split("-")[1] for question in part} for part in parts]  # a country, or a question of 2Wiki
    asked = [{(question.text, question.image) for question in part} for part in parts]
    for found in (owners, asked):
        assert all(found)
        assert not found[0] & found[1]
        assert not found[0] & found[2]
        assert not found[1] & found[2]


def test_no_country_and_no_question_of_one_part_is_in_another_however_many_are_asked_for(folder):
    data = loaded(folder)
    check_parts_are_apart(data)
    few = loaded(folder, EvaluationConfig(questions=6, validation_questions=4), train_questions=8)
    for some, every in ((few.train, data.train), (few.validation, data.validation), (few.heldout, data.heldout)):
        assert {question.id for question in some} <= {question.id for question in every}
    assert [len(part) for part in (few.train, few.validation, few.heldout)] == [8, 4, 6]


def test_a_quarter_of_the_training_questions_begins_with_each_kind_of_route_and_chains_are_as_frequent_as_facts(folder):
    data = loaded(folder)
    kinds = Counter(map(kind_of, data.train))
    assert set(kinds) == {"text_image", "table", "text", "2wiki"}
    assert len(set(kinds.values())) == 1
    pictured = Counter(question.family for question in data.train if question.image)
    assert set(pictured) == {"atlas_image", "atlas_image_table", "atlas_image_text", "atlas_image_table_text"}
    assert max(pictured.values()) - min(pictured.values()) <= 1
    few = loaded(folder, EvaluationConfig(questions=4, validation_questions=4))
    assert Counter(question.id.split("-")[0] for question in few.heldout) == {"atlas": 2, "2wiki": 2}


def test_both_kinds_of_text_are_in_one_knowledge_base_and_questions_with_four_facts_are_left_out(folder):
    data = loaded(folder)
    passages = {source.name: list(source.passages()) for source in data.training_kbs}
    assert {kb: len(found) for kb, found in passages.items()} == {"text": 3 * 30 + 48, "text_image": 30, "table": 60}
    assert len({passage.id for passage in passages["text"]}) == len(passages["text"])
    assert data.training_kbs == data.evaluation_kbs
    assert "Factbook" not in data.training_kbs[0].description
    assert "encyclopedia" in data.training_kbs[0].description
    every = [*data.train, *data.validation, *data.heldout]
    assert {question.family for question in every if question.id.startswith("2wiki")} == {"2wiki_compositional", "2wiki_comparison"}
    for question in data.heldout:
        if question.id.startswith("2wiki"):
            gold = {passage.id: passage.title for passage in passages["text"]}
            assert question.gold_steps[0].entities[0] in {gold[id] for id in data.gold_passages[question.id]}
    assert {question.gold_steps[0].answer for question in every if question.family == "atlas_image"} <= set(COUNTRIES)


def test_a_folder_without_the_data_is_named(tmp_path):
    with pytest.raises(RunConfigError, match=r"nowhere is not there; set data\.path to where data\.name=atlas_2wiki lies"):
        loaded(tmp_path / "nowhere")


@pytest.mark.skipif(not SHARED.is_dir(), reason="the published data is not beside the repository")
def test_the_published_data_is_joined():
    data = loaded(SHARED, train_questions=1200)
    check_parts_are_apart(data)
    assert [len(part) for part in (data.train, data.validation, data.heldout)] == [1200, 64, 200]
    assert Counter(map(kind_of, data.train)) == {"text_image": 300, "table": 300, "text": 300, "2wiki": 300}
    assert sum(len(question.gold_steps) > 1 for question in data.train) > 600
    assert {source.name: sum(1 for _ in source.passages()) for source in data.training_kbs} == {
        "text": 8220,
        "text_image": 250,
        "table": 500,
    }
