"""BM25 over a whole knowledge base: the published formula, the same answer every time, nothing found where nothing fits."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval_actors.index.bm25 import K1, B, BM25Index

TEXTS = [
    "Zorn is the capital of Meltoria, and Zorn lies by the sea",
    "The currency of Meltoria is the mel",
    "Kandaria borders Meltoria",
    "Zürich 東京 straße",
    "",
    "The currency of Kandaria is the kan",
]


@pytest.fixture(scope="module")
def index(tmp_path_factory) -> BM25Index:
    return BM25Index.build(TEXTS, tmp_path_factory.mktemp("lexical"))


def lucene_bm25(query: str, texts: list[str]) -> list[float]:
    """Written out from the formula, with none of the library: sum of idf * tf / (tf + k1 * (1 - b + b * length / mean length))."""
    from bm25s.stopwords import STOPWORDS_EN

    words = [[word for word in re.findall(r"\w+", text.lower()) if word not in STOPWORDS_EN] for text in texts]
    mean = sum(map(len, words)) / len(words)
    totals = [0.0] * len(texts)
    for asked in re.findall(r"\w+", query.lower()):
        holding = sum(asked in found for found in words)
        idf = math.log(1 + (len(texts) - holding + 0.5) / (holding + 0.5))
        for row, found in enumerate(words):
            count = found.count(asked)
            totals[row] += idf * count / (count + K1 * (1 - B + B * len(found) / mean)) if asked not in STOPWORDS_EN else 0
    return totals


@pytest.mark.parametrize("query", ["capital Zorn", "currency of Meltoria", "zürich", "Kandaria Kandaria"])
def test_scores_are_those_of_the_formula(index, query):
    scores, positions = index.search([query], k=6)
    expected = lucene_bm25(query, TEXTS)
    found = {int(position): float(score) for position, score in zip(positions[0], scores[0], strict=True) if position >= 0}
    assert found == pytest.approx({row: score for row, score in enumerate(expected) if score > 0}, rel=1e-5)
    assert list(scores[0]) == sorted(scores[0], reverse=True)


def test_only_passages_that_hold_a_word_are_found(index):
    scores, positions = index.search(["sea", "nowhere", "", "the of and", "東京"], k=3)
    assert positions.tolist() == [[0, -1, -1], [-1] * 3, [-1] * 3, [-1] * 3, [3, -1, -1]]
    assert (scores > 0).tolist() == (positions >= 0).tolist()


def test_ties_go_to_the_earlier_position(tmp_path):
    same = BM25Index.build(["red flag", "blue"] * 40, tmp_path)
    assert same.search(["flag"], k=5)[1].tolist() == [[0, 2, 4, 6, 8]]


def test_the_order_and_case_of_the_words_change_no_bit(index):
    scores, positions = index.search(["Meltoria currency capital sea", "SEA capital currency meltoria"], k=6)
    np.testing.assert_array_equal(scores[0], scores[1])
    np.testing.assert_array_equal(positions[0], positions[1])


def test_sizes_at_the_edge_are_legal(index, tmp_path):
    assert index.search([], k=3)[0].shape == (0, 3)
    assert index.search(["sea"], k=100)[1].shape == (1, 6)
    assert index.search(["sea"], k=0)[1].shape == (1, 0)
    assert index.search(["sea " * 20_000], k=1)[1].tolist() == [[0]]
    for texts in ([], ["", ""], ["the"]):
        assert BM25Index.build(texts, tmp_path).search(["sea", ""], k=2)[1].tolist() == [[-1] * min(2, len(texts))] * 2


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.text(alphabet="abcd é", max_size=12), min_size=1, max_size=20), st.text(alphabet="abcd é", max_size=8), st.integers(1, 25)
)
def test_the_best_k_are_the_beginning_of_the_best_of_all(tmp_path_factory, texts, query, k):
    built = BM25Index.build(texts, tmp_path_factory.mktemp("any"))
    scores, positions = built.search([query], k)
    all_scores, all_positions = built.search([query], len(texts))
    np.testing.assert_array_equal(positions[0], all_positions[0][:k])
    np.testing.assert_array_equal(scores[0], all_scores[0][:k])


def test_what_was_written_is_what_is_loaded_and_it_is_mapped(index, tmp_path):
    BM25Index.build(TEXTS, tmp_path)
    loaded = BM25Index.load(tmp_path)
    assert isinstance(loaded._engine.scores["data"], np.memmap)
    np.testing.assert_array_equal(loaded.search(["currency of Kandaria"], 4)[1], index.search(["currency of Kandaria"], 4)[1])
    assert loaded.passages == len(TEXTS)


def test_two_processes_write_the_same_bytes(tmp_path):
    code = "import sys, pathlib; from retrieval_actors.index.bm25 import BM25Index\n"
    code += "BM25Index.build(sys.argv[2:], pathlib.Path(sys.argv[1]))"
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(__file__).parents[3])}
        subprocess.run([sys.executable, "-c", code, str(tmp_path / seed), *TEXTS], env=environment, check=True, timeout=120)
    for file in (tmp_path / "1").iterdir():
        assert file.read_bytes() == (tmp_path / "2" / file.name).read_bytes(), file
