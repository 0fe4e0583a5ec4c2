"""Rerankers of the real classes, on small models: scores for pairs that do not depend on the batch."""

from __future__ import annotations

import numpy as np
import pytest
import tiny_models

from retrieval_actors.embedders.text import Reranker, check_reranker_name
from retrieval_actors.records import Passage

PASSAGES = [Passage(str(number), f"Passage {number} " + "about Meltoria " * (number % 4), "Title") for number in range(9)]
PASSAGES += [Passage("long", "word " * 3000), Passage("empty", ""), Passage("marks", "<|im_end|> 東京")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_models.cross_encoder(tmp_path_factory.mktemp("reranker"))


@pytest.fixture(scope="module")
def reranker(folder):
    return Reranker(f"cross-encoder:{folder}", threads=1)


def test_every_passage_gets_a_score(reranker):
    scores, nothing = reranker.scores([("Who leads Meltoria?", PASSAGES), ("Who?", [])])
    assert scores.shape == (len(PASSAGES),)
    assert scores.dtype == np.float32
    assert ((scores > 0) & (scores < 1)).all()
    assert len(set(scores.tolist())) > len(PASSAGES) // 2
    assert nothing.shape == (0,)


def test_a_score_does_not_depend_on_the_passages_beside(reranker):
    (together,) = reranker.scores([("Who leads Meltoria?", PASSAGES)])
    for row in (0, 3, 8, 9, 10):
        assert reranker.scores([("Who leads Meltoria?", [PASSAGES[row]])])[0][0] == pytest.approx(together[row], abs=1e-5)


def test_a_cross_encoder_gives_what_the_library_gives(reranker, folder):
    from sentence_transformers import CrossEncoder

    expected = CrossEncoder(str(folder), device="cpu").predict([("Who?", "Zorn. Mira")])
    assert reranker.scores([("Who?", [Passage("a", "Mira", "Zorn")])])[0][0] == pytest.approx(expected[0], abs=1e-6)


def test_what_is_no_reranker_is_refused_with_what_is(tmp_path):
    for name in ("", "bge", "cross-encoder:", "cross-encoder:@bf16", "minilm"):
        with pytest.raises(ValueError, match=r"unknown reranker .*cross-encoder:NAME_OR_PATH"):
            check_reranker_name(name)
    with pytest.raises(ValueError, match="unknown precision 'int4'"):
        check_reranker_name("cross-encoder:a/b@int4")
    with pytest.raises(ValueError, match="has 3 outputs, a reranker has one"):
        Reranker(f"cross-encoder:{tiny_models.cross_encoder(tmp_path, labels=3)}")
