"""Rerankers of the real classes, on small models: scores for pairs, whatever stands beside them."""

from __future__ import annotations

import numpy as np
import pytest
import tiny_models
import torch

from retrieval_actors.records import Passage
from retrieval_actors.reranker import FOOT, HEAD, INSTRUCTION, SHORT_NAMES, build_reranker, check_reranker_name

PASSAGES = [Passage(str(number), f"Passage {number} " + "about Meltoria " * (number % 4), "Title") for number in range(9)]
PASSAGES += [Passage("long", "word " * 3000), Passage("empty", ""), Passage("marks", "<|im_end|> 東京")]


@pytest.fixture(scope="module", params=["cross-encoder", "qwen3-reranker"])
def reranker(request, tmp_path_factory):
    make = {"cross-encoder": tiny_models.cross_encoder, "qwen3-reranker": tiny_models.qwen3_reranker}[request.param]
    return build_reranker(f"{request.param}:{make(tmp_path_factory.mktemp('reranker'))}", threads=1)


def test_every_passage_gets_a_score(reranker):
    scores = reranker.scores("Who leads Meltoria?", PASSAGES)
    assert scores.shape == (len(PASSAGES),)
    assert scores.dtype == np.float32
    assert ((scores > 0) & (scores < 1)).all()
    assert len(set(scores.tolist())) > len(PASSAGES) // 2
    assert reranker.scores("Who?", []).shape == (0,)


def test_a_score_does_not_depend_on_the_passages_beside(reranker):
    together = reranker.scores("Who leads Meltoria?", PASSAGES)
    for row in (0, 3, 8, 9, 10):
        assert reranker.scores("Who leads Meltoria?", [PASSAGES[row]])[0] == pytest.approx(together[row], abs=1e-5)


def test_qwen3_reranker_gives_the_odds_of_yes_after_the_published_prompt(tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tiny_models.qwen3_reranker(tmp_path)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    pair = f"<Instruct>: {INSTRUCTION}\n<Query>: Who leads Meltoria?\n<Document>: Zorn. Mira leads it."
    with torch.inference_mode():
        logits = model(**tokenizer(HEAD + pair + FOOT, return_tensors="pt")).logits[0, -1]
    yes, no = (float(logits[tokenizer.convert_tokens_to_ids(word)]) for word in ("yes", "no"))
    found = build_reranker(f"qwen3-reranker:{folder}").scores("Who leads Meltoria?", [Passage("a", "Mira leads it.", "Zorn")])
    assert found[0] == pytest.approx(np.exp(yes) / (np.exp(yes) + np.exp(no)), abs=1e-6)


def test_a_cross_encoder_gives_what_the_library_gives(tmp_path):
    from sentence_transformers import CrossEncoder

    folder = tiny_models.cross_encoder(tmp_path)
    expected = CrossEncoder(str(folder), device="cpu").predict([("Who?", "Zorn. Mira")])
    assert build_reranker(f"cross-encoder:{folder}").scores("Who?", [Passage("a", "Mira", "Zorn")])[0] == pytest.approx(
        expected[0], abs=1e-6
    )


def test_what_is_no_reranker_is_refused_with_what_is(tmp_path):
    for name in ("", "bge", "cross-encoder:", "minilm"):
        with pytest.raises(ValueError, match=r"unknown reranker .*cross-encoder:.*qwen3-reranker:"):
            check_reranker_name(name)
    with pytest.raises(ValueError, match="unknown precision 'int4'"):
        check_reranker_name("cross-encoder:a/b@int4")
    for name in SHORT_NAMES:
        check_reranker_name(name)
    with pytest.raises(ValueError, match="has 3 outputs, a reranker has one"):
        build_reranker(f"cross-encoder:{tiny_models.cross_encoder(tmp_path, labels=3)}")
