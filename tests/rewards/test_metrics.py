"""The measures against cases worked out by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.answer_metrics import best_gold, normalise, overlap

TEXT = st.text(alphabet="abcxyz the1,.'- ", max_size=30)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  Baltic Sea.", "baltic sea"),
        ("Two films, a song & an opera!", "2 films song opera"),
        ("It doesnt matter", "it doesn't matter"),
        ("it doesn\u2019t matter", "it doesn't matter"),
        ("1,234,567 people", "1234567 people"),
        ("1, 2 and 3", "1 2 and 3"),
        ("3.14 is not 3.", "3.14 is not 3"),
        ("Kor-mu", "kor mu"),
        ("the country's 'capital'", "country's capital"),
        ("Zürich (Switzerland)", "zürich switzerland"),
        ("none", "0"),
        ("", ""),
    ],
)
def test_texts_are_normalised_as_in_the_vqa_evaluation(text: str, expected: str):
    assert normalise(text) == expected


@given(TEXT)
def test_normalising_twice_changes_nothing(text: str):
    assert normalise(normalise(text)) == normalise(text)


def test_precision_recall_and_f1_of_a_case_worked_out_by_hand():
    # predicted: directed by frank wisbar (4 tokens), gold: frank robert wisbar (3 tokens), shared: frank, wisbar
    precision, recall, harmonic = overlap("directed by Frank Wisbar", "Frank Robert Wisbar")
    assert (precision, recall) == (2 / 4, 2 / 3)
    assert harmonic == pytest.approx(2 * (2 / 4) * (2 / 3) / (2 / 4 + 2 / 3))


def test_a_token_counts_only_as_often_as_the_gold_has_it():
    assert overlap("new new york", "new york")[0] == 2 / 3
    assert overlap("new york", "new new york")[1] == 2 / 3


@given(TEXT, TEXT)
def test_measures_lie_between_zero_and_one_and_f1_is_symmetric(a: str, b: str):
    assert all(0.0 <= value <= 1.0 for value in overlap(a, b))
    assert overlap(a, b)[2] == pytest.approx(overlap(b, a)[2])


@given(TEXT)
def test_a_text_agrees_with_itself(text: str):
    assert overlap(text, text) == (1.0, 1.0, 1.0)


def test_the_best_gold_is_the_one_with_the_best_f1_not_the_best_recall():
    # gold "red blue green": F1 of "red blue" is 2 * 1 * (2/3) / (5/3) = .8, recall 2/3; gold "blue": F1 is 2/3, recall 1
    assert best_gold("red blue", ["red blue green", "blue"]) == "red blue green"
