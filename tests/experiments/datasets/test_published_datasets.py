"""The published data sets as they are: everything in them is read, and what is made of them is right."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from experiments.config import DataConfig, EvaluationConfig, RunConfigError
from experiments.datasets import Dataset, load_dataset
from experiments.datasets.dataset import split
from experiments.datasets.question_file import read_questions
from experiments.datasets.real_atlas import questions_about, read_countries
from experiments.evaluation.metrics import count
from experiments.train import check
from retrieval_actors.sources.data_files import DataError
from rewards.answer_metrics import f1_recall
from rollout.needs import askable_needs, holds_answer, open_needs
from rollout.records import Exchange, Trajectory

SHARED = (Path(__file__).parents[3] / "../shared/data").resolve()
SMALL = EvaluationConfig(questions=16, validation_questions=8)
ALL = EvaluationConfig(questions=10_000, validation_questions=8)
pytestmark = pytest.mark.skipif(not SHARED.is_dir(), reason="the published data is not beside the repository")


def data(name: str, **settings) -> DataConfig:
    return DataConfig(name=name, folder=str(SHARED), **settings)


@pytest.mark.parametrize(
    ("name", "questions", "pictured"),
    [
        *(("paper_2wiki", 3000, False), ("infoseek", 1000, True), ("webqa", 1000, True)),
        *(("dynvqa", 715, True), ("openwikitable", 2999, False), ("tabfact", 1000, False)),
    ],
)
def test_the_paper_s_six_sets_are_read_in_the_order_of_their_files(name, questions, pictured):
    loaded = load_dataset(data(name), ALL, {})
    assert len(loaded.heldout) >= questions
    assert [question.id for question in loaded.heldout[:3]] == [f"{name}-{number}" for number in range(3)]
    assert all(question.answers and question.text and question.gold_steps is None for question in loaded.heldout)
    assert (loaded.train, loaded.validation) == ((), ())
    assert bool(loaded.notes) == pictured
    if pictured:
        assert f"{len(loaded.heldout)} of {len(loaded.heldout)} pictures are not in data.image_folder=''" in loaded.notes[0]


def test_numeric_questions_of_infoseek_take_every_number_of_their_range():
    gestation = load_dataset(data("infoseek"), SMALL, {}).heldout[2]
    assert gestation.text == "How many days does the gestation of this animal take?"  # gold: 6.5 to 7 days
    assert f1_recall("about 6.75 days", gestation.answers) == 1.0
    assert f1_recall("about 8 days", gestation.answers) == 0.0
    assert gestation.answer_range == (6.5, 7.0)
    right, wrong = (Trajectory(gestation, (), None, said, ()) for said in ("6.75", "65"))  # SQuAD's normalisation makes 65 of 6.5
    assert [count(found, {})["exact_match"] for found in (right, wrong)] == [(1.0, 1), (0.0, 1)]


def test_pictures_are_found_by_their_id_and_those_that_are_missing_are_counted(tmp_path):
    first = json.loads((SHARED / "r1router/webqa_val.jsonl").read_text(encoding="utf-8").splitlines()[0])
    PIL.Image.new("RGB", (8, 8), "red").save(tmp_path / f"{first['image_id']}.png")
    loaded = load_dataset(data("webqa", image_folder=str(tmp_path)), SMALL, {})
    assert [question.image is not None for question in loaded.heldout[:2]] == [True, False]
    assert "15 of 16 pictures" in loaded.notes[0]


def test_an_evaluation_set_is_not_trained_on():
    with pytest.raises(RunConfigError, match=r"data\.name=tabfact has no training questions: .*for evaluation only"):
        check(["data.name=tabfact", f"data.folder={SHARED}"])


def test_questions_over_linked_tables_need_the_table_first():
    loaded = load_dataset(data("ottqa", train_questions=10_000), SMALL, {})
    assert [source.name for source in loaded.training_kbs] == ["text", "table"]
    questions = [*loaded.train, *loaded.validation, *loaded.heldout]
    assert len(questions) == 2214
    two_hops = [question for question in questions if question.gold_steps and len(question.gold_steps) == 2]
    assert len(two_hops) > 1000
    for question in two_hops[:200]:
        first, second = question.gold_steps
        assert (first.kbs, second.kbs, second.answer) == (("table",), ("text",), question.answers[0])
        assert second.entities == (first.answer,)
        assert open_needs(question, (Exchange(first.query, "table", first.answer),)).remaining == [second]
    assert all(loaded.gold_passages[question.id] for question in questions)


def test_table_questions_name_their_table_and_test_tables_are_unseen():
    loaded = load_dataset(data("wikitables", train_questions=400), SMALL, {})
    assert all(question.text.startswith('In the table "') for question in loaded.heldout)
    tables = [{loaded.gold_passages[question.id] for question in part} for part in (loaded.train, loaded.heldout)]
    assert not tables[0] & tables[1]
    cells = [question for question in loaded.train if question.gold_steps]
    assert 0 < len(cells) < len(loaded.train)
    passages = [replace(passage, kb="table") for passage in loaded.training_kbs[0].passages()]
    found = sum(
        any(passage.id.startswith(loaded.gold_passages[q.id][0] + "#") and q.answers[0] in passage.text for passage in passages)
        for q in cells[:40]
    )
    assert found >= 36  # the blanks of a few cells are written in another way


def test_countries_of_held_out_questions_occur_in_no_training_question():
    loaded = load_dataset(data("real_atlas", train_questions=10_000), ALL, {})
    parts = [{question.id.split("-")[0] for question in part} for part in (loaded.train, loaded.validation, loaded.heldout)]
    assert all(len(part) > 5 for part in parts)
    assert not parts[0] & parts[1]
    assert not parts[0] & parts[2]
    assert {question.family for question in loaded.heldout} == {
        *("image", "table", "text", "image_table", "image_text", "table_text", "image_table_text")
    }


@pytest.mark.slow
def test_nearly_every_fact_of_the_real_atlas_stands_in_its_knowledge_base_and_in_no_other():
    loaded = load_dataset(data("real_atlas"), ALL, {})
    passages = {source.name: list(source.passages()) for source in loaded.training_kbs}
    needs = {need for question in loaded.heldout for need in question.gold_steps}
    held = {
        need: {kb for kb, found in passages.items() if any(holds_answer(replace(p, kb=need.kbs[0]), need) for p in found)} for need in needs
    }
    assert all(set(need.kbs) <= kbs for need, kbs in held.items())
    asked = [need for need in needs if need.kbs != ("text_image",)]
    assert sum(held[need] == set(need.kbs) for need in asked) > 0.95 * len(asked)


def test_the_longest_chain_goes_from_the_flag_to_the_table_to_the_text():
    country = next(country for country in read_countries(SHARED) if country.name == "Austria")
    chain = next(question for question in questions_about(country) if question.family == "image_table_text")
    assert [(*step.kbs, step.answer) for step in chain.gold_steps] == [("text_image", "Austria"), ("table", "Vienna"), ("text", "UTC+1")]
    assert chain.answers == ("UTC+1",)
    assert chain.image is not None
    assert chain.image.data != country.flag
    assert askable_needs(chain, ()) == [chain.gold_steps[0]]
    wrong = askable_needs(chain, (Exchange(chain.gold_steps[0].query, "text_image", "Latvia"),))
    assert wrong[0].query == "What is the capital of Latvia?"


def own_dataset(config: DataConfig, evaluation: EvaluationConfig) -> Dataset:
    questions = read_questions(config.path)
    train, validation, heldout = split(questions, config, evaluation)
    return Dataset(train, validation, heldout)


def test_a_data_set_of_ones_own_is_one_function_and_parquet_is_read_like_json_lines(tmp_path):
    records = [{"id": f"q{i}", "text": f"What is {i}?", "answers": [str(i)], "family": None if i else "zero"} for i in range(40)]
    for i, record in enumerate(records):
        record["gold_steps"] = [{"query": f"What is {i}?", "kb": "text", "answer": str(i), "entities": None}] if i < 2 else None
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "questions.parquet")
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps({k: v for k, v in r.items() if v}) + "\n" for r in records))
    config = DataConfig(name=f"{__name__}:own_dataset", path=str(tmp_path / "questions.parquet"))
    assert len(load_dataset(config, SMALL, {}).heldout) == 16
    from_parquet, from_lines = (read_questions(tmp_path / name) for name in ("questions.parquet", "questions.jsonl"))
    assert from_parquet == from_lines
    assert from_parquet[1].gold_steps[0].entities == ()


def test_a_wrong_row_of_parquet_is_named_by_file_and_row(tmp_path):
    path = tmp_path / "questions.parquet"
    pq.write_table(pa.table({"text": ["Who?", "  "], "answers": [["a"], ["b"]]}), path)
    with pytest.raises(DataError, match=r"questions\.parquet:2: text is None, expected a text that is not empty"):
        read_questions(path)
    path.write_bytes(b"no parquet at all")
    with pytest.raises(DataError, match=r"questions\.parquet: not Parquet"):
        read_questions(path)
