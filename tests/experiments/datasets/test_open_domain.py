"""HotpotQA, MuSiQue, NQ, TriviaQA, PopQA and Bamboogle: small files in the layouts in which they are published."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from experiments.config import DataConfig, EvaluationConfig, RunConfigError
from experiments.datasets import Dataset, load_dataset
from experiments.datasets.multi_hop import musique_steps
from experiments.evaluation.metrics import count
from experiments.train import check
from retrieval_actors.sources.data_files import DataError
from rollout.needs import open_needs
from rollout.records import Exchange, GoldStep, Step, Trajectory

SMALL = EvaluationConfig(questions=2, validation_questions=1)
CITIES = ("Runo", "Tasla", "Velmo", "Ostrin", "Pellam", "Quors")


def hotpot(number: int) -> dict[str, Any]:
    city, other = CITIES[number % 6], CITIES[(number + 1) % 6]
    context = [[name, [f"{name} is a city.", f" It lies by the river {name[::-1]}."]] for name in (city, other)]
    facts = [[city, 1], [city, 0]]
    asked = {"_id": f"5a{number}", "question": f"By which river lies {city}?", "answer": city[::-1]}
    return asked | {"supporting_facts": facts, "context": context, "type": "bridge", "level": "easy"}


def musique(number: int, **changed: Any) -> dict[str, Any]:
    film, person = f"Film {number}", f"Ann {CITIES[number % 6]}"
    texts = [
        (film, f"{film} was directed by {person}."),
        (person, f"{person} was born in Runo."),
        (person, "Another paragraph of the article."),
    ]
    return {
        "id": f"2hop__{number}_7",
        "question": f"Where was the director of {film} born?",
        "answer": "Runo",
        "answer_aliases": ["Runo City", "Runo"],
        "answerable": True,
        "paragraphs": [
            {"idx": idx, "title": title, "paragraph_text": text, "is_supporting": idx < 2} for idx, (title, text) in enumerate(texts)
        ],
        "question_decomposition": [
            {"id": 1, "question": f"{film} >> director", "answer": person, "paragraph_support_idx": 0},
            {"id": 2, "question": "Where was #1 born?", "answer": "Runo", "paragraph_support_idx": 1},
        ],
    } | changed


def lines(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def loaded(name: str, path: Path, folders: dict[str, str] | None = None, **settings: Any) -> Dataset:
    data = DataConfig(name=name, path=str(path), kb_folder=str(path.parent / "kbs"), **settings)
    return load_dataset(data, SMALL, folders or {})


def test_hotpotqa_brings_its_paragraphs_once_and_its_supporting_ones_are_gold(tmp_path):
    file = tmp_path / "hotpot_dev_distractor_v1.json"
    file.write_text(json.dumps([hotpot(number) for number in range(6)], indent=1))
    found = loaded("hotpotqa", file)
    assert [len(part) for part in (found.train, found.validation, found.heldout)] == [3, 1, 2]
    (source,) = found.evaluation_kbs
    passages = {passage.title: passage for passage in source.passages()}
    assert sorted(passages) == sorted(CITIES)
    assert len(list(source.passages())) == 6
    assert passages["Runo"].text == "Runo is a city. It lies by the river onuR."
    for question in found.heldout:
        assert question.gold_steps is None
        assert question.family == "bridge"
        (gold,) = found.gold_passages[question.id]
        city = next(name for name in CITIES if name in question.text)
        assert gold == passages[city].id
        read = Trajectory(question, (Step(None, None, (passages[city],)),), None, "", ())
        assert count(read, {}, found.gold_passages[question.id])["hit_at_k"] == (1, 1)
    assert not {q.id for q in found.train} & {q.id for q in (*found.validation, *found.heldout)}
    other = loaded("hotpotqa", file, seed=1).evaluation_kbs[0].folder
    assert source.folder == other  # all six are drawn again
    assert loaded("hotpotqa", file, train_questions=1).evaluation_kbs[0].folder != source.folder


def test_the_hub_s_form_of_hotpotqa_gives_the_same(tmp_path):
    rows = []
    for record in map(hotpot, range(4)):
        titles, sentences = zip(*record.pop("context"), strict=True)
        facts = zip(*record.pop("supporting_facts"), strict=True)
        row = record | {"id": record.pop("_id"), "supporting_facts": dict(zip(("title", "sent_id"), map(list, facts), strict=True))}
        rows.append(row | {"context": {"title": list(titles), "sentences": list(sentences)}})
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "validation.parquet")
    hub = loaded("hotpotqa", tmp_path / "validation.parquet")
    own = loaded("hotpotqa", lines(tmp_path / "dev.jsonl", [hotpot(number) for number in range(4)]))
    assert hub.heldout == own.heldout
    assert hub.gold_passages == own.gold_passages
    assert list(hub.evaluation_kbs[0].passages()) == list(own.evaluation_kbs[0].passages())


def test_a_supporting_paragraph_that_the_fullwiki_setting_did_not_find_counts_as_missed(tmp_path):
    record = hotpot(0) | {"supporting_facts": [["Runo", 0], ["Nowhere", 0]]}
    file = tmp_path / "hotpot_dev_fullwiki_v1.json"
    file.write_text(json.dumps([record, *map(hotpot, range(1, 3))]))
    found = load_dataset(DataConfig(name="hotpotqa", path=str(file)), replace(SMALL, questions=3), {})
    assert len(found.gold_passages["5a0"]) == 2
    assert len(set(found.gold_passages["5a0"]) & {passage.id for passage in found.evaluation_kbs[0].passages()}) == 1


def test_named_knowledge_bases_stand_in_for_the_paragraphs_and_their_gold(tmp_path):
    file = lines(tmp_path / "musique_ans_v1.0_dev.jsonl", [musique(number) for number in range(4)])
    found = loaded("musique", file, {"wikipedia": "kbs/wikipedia"})
    assert [source.name for source in found.evaluation_kbs] == ["wikipedia"]
    assert found.gold_passages == {}


def test_musique_s_decomposition_becomes_gold_steps_that_are_met_in_their_order(tmp_path):
    folder = tmp_path / "musique"
    folder.mkdir()
    lines(folder / "musique_ans_v1.0_train.jsonl", [musique(number) for number in range(10, 16)])
    lines(folder / "musique_ans_v1.0_dev.jsonl", [musique(number) for number in range(4)])
    lines(folder / "musique_full_v1.0_dev.jsonl", [musique(number, answerable=False) for number in range(4)])
    found = loaded("musique", folder)
    number = int(found.heldout[0].id.split("_")[2])
    assert all(int(q.id.split("_")[2]) < 4 for q in found.heldout)
    assert all(int(q.id.split("_")[2]) >= 10 for q in (*found.train, *found.validation))
    question, person = found.heldout[0], f"Ann {CITIES[number]}"
    assert question.answers == ("Runo", "Runo City")
    assert question.family == "2hop"
    first, second = question.gold_steps
    assert first == GoldStep(f"Who is the director of Film {number}?", "text", person, (f"Film {number}",))
    assert second == GoldStep(f"Where was {person} born?", "text", "Runo", (person,))
    assert open_needs(question, ()).askable(question.text) == [first]
    assert open_needs(question, (Exchange(first.query, "text", person),)).remaining == [second]
    passages = list(found.evaluation_kbs[0].passages())
    assert len({passage.id for passage in passages}) == len(passages)
    supporting = {passage.text for passage in passages if passage.id in found.gold_passages[question.id]}
    assert supporting == {f"Film {number} was directed by {person}.", f"{person} was born in Runo."}


def test_evidence_of_2wiki_as_it_is_published_becomes_gold_steps(tmp_path):
    records = [hotpot(number) | {"type": "compositional", "evidences": [[CITIES[number], "country", "Kormu"]]} for number in range(3)]
    (tmp_path / "dev.json").write_text(json.dumps(records))
    found = loaded("2wikimultihopqa", tmp_path)
    question = found.heldout[0]
    city = next(name for name in CITIES if name in question.text)
    assert question.gold_steps == (GoldStep(f"In which country is {city}?", "text", "Kormu", (city,)),)
    assert len(found.gold_passages[question.id]) == 1


def test_a_decomposition_that_names_a_later_step_gives_no_gold_steps():
    assert musique_steps([{"question": "Where was #2 born?", "answer": "Runo"}, {"question": "Who is it?", "answer": "Ann"}]) is None
    assert musique_steps([{"question": "Who won the #1 prize?", "answer": "Ann"}]) is None


TRIVIA = {
    "Data": [
        {
            "Question": f"Who was {n}?",
            "QuestionId": f"tc_{n}",
            "Answer": {"Value": f"V{n}", "Aliases": [f"V{n}", f"Alias {n}"], "Type": "Free"},
        }
        for n in range(4)
    ],
    "Domain": "Web",
}
FORMS = {
    "NQ-open.dev.jsonl": ("nq", [{"question": f"who was {n}", "answer": [f"V{n}", f"Alias {n}"]} for n in range(4)]),
    "biencoder-nq-dev.json": ("nq", [{"question": f"who was {n}", "answers": [f"V{n}", f"Alias {n}"]} for n in range(4)]),
    "test.jsonl": (
        "popqa",
        [{"id": f"test_{n}", "question": f"who was {n}?", "golden_answers": [f"V{n}", f"Alias {n}"]} for n in range(4)],
    ),
    "unfiltered-web-dev.json": ("triviaqa", TRIVIA),
}


@pytest.mark.parametrize("file", FORMS)
def test_questions_are_read_in_the_forms_in_which_others_publish_them(tmp_path, file):
    name, content = FORMS[file]
    if file.endswith(".jsonl"):
        lines(tmp_path / file, content)
    else:
        (tmp_path / file).write_text(json.dumps(content, indent=4))
    found = loaded(name, tmp_path / file if file.startswith("biencoder") else tmp_path)
    questions = sorted([*found.train, *found.validation, *found.heldout], key=lambda q: q.id)
    assert [question.answers for question in questions] == [(f"V{n}", f"Alias {n}") for n in range(4)]
    assert [question.text.rstrip("?").lower() for question in questions] == [f"who was {n}" for n in range(4)]
    assert len({question.id for question in questions}) == 4
    assert not found.evaluation_kbs


def test_tables_of_popqa_and_bamboogle_are_read(tmp_path):
    (tmp_path / "popQA.tsv").write_text('id\tquestion\tpossible_answers\n7\tWho is it?\t"[""Ann"", ""Anna""]"\n')
    (tmp_path / "Bamboogle Prerelease - Sheet1.csv").write_text('Question,Answer\n"Who, then?",Ann\n')
    assert [(q.id, q.answers) for q in loaded("popqa", tmp_path).heldout] == [("7", ("Ann", "Anna"))]
    assert [(q.text, q.answers) for q in loaded("bamboogle", tmp_path).heldout] == [("Who, then?", ("Ann",))]


def test_of_a_file_with_several_sets_only_its_own_questions_are_read(tmp_path):
    rows = [
        {"id": f"test_{n}", "question": f"{name} {n}?", "golden_answers": ["a"], "data_source": name}
        for name in ("nq", "musique")
        for n in (0, 1)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "test.parquet")
    for name in ("nq", "musique"):
        found = loaded(name, tmp_path / "test.parquet")
        assert sorted(q.text for q in found.heldout) == [f"{name} 0?", f"{name} 1?"]
        assert not found.evaluation_kbs
    with pytest.raises(DataError, match=r"test\.parquet: holds no question of triviaqa"):
        loaded("triviaqa", tmp_path / "test.parquet")


def broken_trivia(path: Path) -> None:
    text = json.dumps(TRIVIA, indent=1).splitlines()
    number = next(n for n, line in enumerate(text) if '"Value": "V2"' in line)
    path.write_text("\n".join([*text[:number], *text[number + 1 :]]))


@pytest.mark.parametrize(
    ("name", "file", "write", "expected"),
    [
        (
            "nq",
            "dev.jsonl",
            lambda path: lines(path, [{"question": "who", "answer": ["a"]}, {"question": "who"}]),
            r"dev\.jsonl:2: has no answers",
        ),
        ("nq", "dev.jsonl", lambda path: lines(path, [{"question": "who", "answer": []}]), r"dev\.jsonl:1: .* expected neither empty"),
        ("triviaqa", "web-dev.json", broken_trivia, r"web-dev\.json:\d\d \(element 3\): not a record of triviaqa \(KeyError: 'value'\)"),
        (
            "hotpotqa",
            "dev.jsonl",
            lambda path: lines(path, [hotpot(0), {"_id": "x", "question": "?"}]),
            r"dev\.jsonl:2: not a record of hotpotqa",
        ),
        ("hotpotqa", "dev.jsonl", lambda path: lines(path, [hotpot(0), hotpot(0)]), r"dev\.jsonl:2: id '5a0' occurs twice"),
        ("musique", "dev.jsonl", lambda path: lines(path, [musique(0, answerable=False)]), r"dev\.jsonl:1: .*not musique_full"),
    ],
)
def test_what_is_wrong_is_said_in_a_line_with_its_place(tmp_path, name, file, write, expected):
    write(tmp_path / file)
    with pytest.raises(DataError, match=expected) as raised:
        loaded(name, tmp_path / file)
    assert "\n" not in str(raised.value)


def test_a_folder_without_the_files_and_a_training_without_a_knowledge_base_are_refused(tmp_path):
    with pytest.raises(RunConfigError, match=r"holds none of NQ-open\.train\.jsonl, train\.\*, NQ-open\.dev"):
        loaded("nq", tmp_path)
    lines(tmp_path / "train.jsonl", [{"question": f"who was {n}", "answer": ["a"]} for n in range(9)])
    small = ["evaluation.questions=2", "evaluation.validation_questions=2"]
    with pytest.raises(RunConfigError, match=r"retrieval\.folders is empty; data\.name=nq brings no knowledge base"):
        check(["data.name=nq", f"data.path={tmp_path}", *small])
