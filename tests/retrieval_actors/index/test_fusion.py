"""Rankings become one ranking, by reciprocal ranks."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval_actors.index.bm25 import reciprocal_rank_fusion

rankings = st.lists(st.lists(st.integers(-1, 30), max_size=12), max_size=5)


def test_a_passage_that_two_rankings_hold_beats_one_that_leads_only_one():
    fused = reciprocal_rank_fusion([[4, 7, 1], [9, 7, 4]], k=10)
    assert [position for position, _ in fused] == [4, 7, 9, 1]
    assert dict(fused)[4] == pytest.approx(1 / 61 + 1 / 63)
    assert dict(fused)[9] == pytest.approx(1 / 61)


def test_ties_go_to_the_earlier_position():
    assert [position for position, _ in reciprocal_rank_fusion([[8, 3], [3, 8], [2], [1]], k=4)] == [3, 8, 1, 2]


@pytest.mark.parametrize("nothing", [[], [[]], [[], []], [[-1, -1]]])
def test_nothing_found_is_legal(nothing):
    assert reciprocal_rank_fusion(nothing, k=3) == []


@given(rankings, st.randoms(use_true_random=False))
def test_the_order_of_the_rankings_changes_no_bit(ranked, random):
    shuffled = list(ranked)
    random.shuffle(shuffled)
    assert reciprocal_rank_fusion(ranked, k=20) == reciprocal_rank_fusion(shuffled, k=20)


@given(rankings, st.integers(0, 40))
def test_the_best_k_are_the_beginning_of_the_best_of_all(ranked, k):
    whole = reciprocal_rank_fusion(ranked, k=1000)
    assert reciprocal_rank_fusion(ranked, k) == whole[:k]
    assert sorted(position for position, _ in whole) == sorted({x for ranking in ranked for x in ranking if x >= 0})
    assert all((-a[1], a[0]) < (-b[1], b[0]) for a, b in itertools.pairwise(whole))


@given(st.lists(st.integers(0, 50), unique=True))
def test_one_ranking_alone_keeps_its_order(ranking):
    assert [position for position, _ in reciprocal_rank_fusion([ranking], k=100)] == ranking
