"""What the bench says of retrieval's quality: counted by hand on a few passages, and on real flags."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from experiments.benchmarks.retrieval_quality import (
    ALTERATIONS,
    DEPTH,
    altered,
    flag_rows,
    quality_rows,
    rank,
    recall,
    round_robin,
    table_rows,
    two_wiki_rows,
)
from retrieval_actors.embedders.registry import build_embedder
from retrieval_actors.records import Passage

FLAGS = (Path(__file__).parents[3] / "../shared/data/country_flags").resolve()


def write_lines(path: Path, records: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def test_recall_counts_gold_passages_among_the_first():
    assert recall([[3, 1, 2], [9, 8, 7]], [{1, 2}, {9}], k=2) == pytest.approx(75)
    assert recall([[3, 1, 2], []], [{1, 2}, {9}], k=3) == pytest.approx(50)


def test_hops_take_turns_in_one_ranking_of_their_question():
    assert round_robin([[1, 2, 3], [1, 5], [7]], hops=[2, 1]) == [[1, 2, 5, 3], [7]]
    assert round_robin([list(range(DEPTH)), list(range(DEPTH, 2 * DEPTH))], hops=[2])[0][:4] == [0, DEPTH, 1, DEPTH + 1]


def test_words_and_vectors_are_fused():
    texts = ["Zorn is the capital of Meltoria", "Recipes for bread", "The mel is money in Meltoria", "A song about rain"]
    passages = [Passage(str(row), text) for row, text in enumerate(texts)]
    found = rank(build_embedder("minilm", threads=1), passages, ["capital of Meltoria", "qqq"])
    assert found["minilm"][0][0] == found["BM25 + minilm"][0][0] == 0
    assert found["BM25"] == [[0, 2], []]
    assert found["BM25 + minilm"][1] == found["minilm"][1]


def test_a_text_world_is_measured_in_one_search_and_hop_by_hop(tmp_path):
    corpus = ["Zorn|Zorn is a town in Meltoria.", "Meltoria|Meltoria is led by Mira Vell.", "Bread|Bread is baked.", "Rain|Rain falls."]
    write_lines(
        tmp_path / "corpus.jsonl", [dict(zip(("title", "text"), line.split("|"), strict=True), idx=row) for row, line in enumerate(corpus)]
    )
    asked = {
        "id": "q",
        "question": "Who leads the country of Zorn?",
        "answer": "Mira Vell",
        "type": "compositional",
        "evidence": [["Zorn", "country", "Meltoria"], ["Meltoria", "leader", "Mira Vell"]],
        "gold_passage_idx": [0, 1],
        "gold_reliable": True,
    }
    write_lines(tmp_path / "questions.jsonl", [asked, {**asked, "id": "uncertain", "gold_reliable": False, "gold_passage_idx": [3]}])
    rows = {row.name: row for row in two_wiki_rows(False, tmp_path)}
    per_hop = [row.value for name, row in rows.items() if "recall@2, a search per hop, BM25" in name]
    assert per_hop == [100, 100]
    (best,) = (row for name, row in rows.items() if "recall@2, best single search" in name)
    assert best.baseline == 51.8
    assert best.holds == (best.value >= 51.8)
    assert all("1 questions, 4 passages" in name for name in rows)


def test_tables_are_found_by_their_chunks(tmp_path):
    def table(name: str, rows: list[list[str]]) -> dict:
        return {"table_id": name.replace(" ", "_"), "title": name, "section_title": "Results", "header": ["Year", "Winner"], "rows": rows}

    tables = [table("Zorn Cup", [["1990", "Mira Vell"]]), table("Bread prices", [["1990", "4 mel"]])]
    write_lines(tmp_path / "tables.jsonl", tables)
    write_lines(tmp_path / "questions_dev.jsonl", [{"id": "q", "question": "Who won the Zorn Cup in 1990?", "gold_table_id": "Zorn_Cup"}])
    rows = table_rows(False, tmp_path)
    assert [row.value for row in rows] == [100] * 6


def test_where_data_is_missing_the_row_says_so(tmp_path):
    rows = list(quality_rows(True, tmp_path / "nowhere"))
    assert len(rows) == 3
    for row in rows:
        assert math.isnan(row.value)
        assert row.holds is None
        assert "nowhere" in row.name


@pytest.mark.skipif(not FLAGS.is_dir(), reason="the country flags are not beside the repository")
def test_an_altered_flag_finds_its_own_among_255():
    rows = flag_rows(FLAGS)
    assert len(rows) == len(ALTERATIONS)
    for row in rows:
        assert row.value >= 90, row.name


@pytest.mark.skipif(not FLAGS.is_dir(), reason="the country flags are not beside the repository")
def test_alterations_change_the_picture():
    original = (FLAGS / "png250px/fr.png").read_bytes()
    made = {altered(original, **how) for how in ALTERATIONS.values()}
    assert len(made) == len(ALTERATIONS)
    assert all(picture.startswith(b"\xff\xd8") for picture in made)
