"""What the teacher of the cold start finds is what a run finds: the same passages, with the same lookalikes among them."""

from __future__ import annotations

import random

import numpy as np
import pytest

from experiments.datasets import EMBEDDERS
from experiments.worlds.atlas import KNOWLEDGE_BASES, Atlas
from experiments.worlds.teacher import demonstrate
from experiments.worlds.teacher_search import EmbeddedAtlas, WordOverlap
from retrieval_actors.embedders.registry import build_embedder
from retrieval_actors.records import Query
from rollout.needs import holds_answer
from rollout.turn_parser import parse_plan


@pytest.fixture(scope="module")
def atlas():
    return Atlas("train", seed=5, worlds=1, countries=10)


@pytest.fixture(scope="module")
def questions(atlas):
    return [question for question in atlas.questions(40) if question.gold_steps]


@pytest.fixture(scope="module")
def embedded(atlas, questions):
    return EmbeddedAtlas(atlas, [step.query for question in questions for step in question.gold_steps])


@pytest.mark.parametrize("kb", KNOWLEDGE_BASES)
def test_the_teacher_finds_what_the_embedder_of_a_run_would_find(atlas, questions, embedded, kb):
    embedder, passages = build_embedder(EMBEDDERS[kb]), list(atlas.passages(kb))
    vectors = embedder.embed_passages(passages)
    for question in questions[:12]:
        query = question.gold_steps[0].query
        picture = question.image.data if question.image else None
        scores = vectors @ embedder.embed_queries([Query(query, picture)])[0]
        found = embedded.search(kb, query, question, 3)
        places = [next(i for i, passage in enumerate(passages) if passage.id == one.id) for one in found]
        np.testing.assert_allclose(scores[places], np.sort(scores)[::-1][:3], atol=1e-4)


def test_its_lookalikes_state_the_asked_relation_of_another_country_where_shared_words_bring_other_facts_of_the_right_one(
    atlas, questions, embedded
):
    words = WordOverlap(atlas.worlds[0])
    share = {}
    for name, search in (("embedded", embedded.search), ("words", words.search)):
        lookalikes = []
        for question in questions:
            for step in question.gold_steps:
                if "text" in step.kbs and step.query.startswith("What"):
                    found = search("text", step.query, question, 3)
                    lookalikes += [step.entities[0] in passage.text for passage in found if not holds_answer(passage, step)]
        share[name] = np.mean(lookalikes)
    assert share["embedded"] > share["words"] + 0.3


def test_of_two_countries_the_teacher_asks_for_the_first_and_then_for_the_other(questions, embedded):
    retrievers = {name: kb for kb, (name, _) in KNOWLEDGE_BASES.items()}
    seconds = 0
    for question in questions * 3:
        if question.family != "compare":
            continue
        first, second = (step.query for step in question.gold_steps)
        for turn in demonstrate(question, embedded.search, random.Random(question.id), blind=False):
            action = parse_plan(turn.response, retrievers) if turn.kind == "plan" else None
            if action is None or action.kb is None:
                continue
            history = turn.message.user.split("\n")
            if len(history) == 2:
                assert action.query == first
            elif len(history) == 4 and not history[2].endswith("unknown"):
                assert action.query == second
                seconds += 1
    assert seconds > 3
