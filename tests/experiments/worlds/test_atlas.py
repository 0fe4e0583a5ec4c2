from __future__ import annotations

import re

import numpy as np
import pytest

from experiments.worlds.atlas import FAMILIES, KNOWLEDGE_BASES, SMALLEST_GAP, SPLITS, Atlas, World
from experiments.worlds.flag_pictures import describe, draw, photograph
from retrieval_actors.pictures import decode
from rollout.needs import asked_need, holds_answer

NAME = re.compile(r"\b[A-Z][a-z]+-[a-z]+\b")


@pytest.fixture(scope="module")
def atlases() -> dict[str, Atlas]:
    return {split: Atlas(split, seed=3, worlds=2, countries=8) for split in SPLITS}


def words_of(atlas: Atlas) -> set[str]:
    passages = [passage.text for kb in KNOWLEDGE_BASES for passage in atlas.passages(kb)]
    questions = [text for question in atlas.questions(80) for text in (question.text, *question.answers)]
    return {name for text in passages + questions for name in NAME.findall(text)}


def test_train_validation_and_heldout_worlds_share_no_names(atlases):
    train, validation, heldout = (words_of(atlases[split]) for split in ("train", "validation", "heldout"))
    assert min(map(len, (train, validation, heldout))) > 80
    assert not train & validation | train & heldout | validation & heldout


def test_the_same_seed_is_the_same_atlas_and_another_is_another():
    def content(seed):
        atlas = Atlas("train", seed, worlds=1, countries=4)
        return [[p for kb in KNOWLEDGE_BASES for p in atlas.passages(kb)], atlas.questions(24)]

    assert content(1) == content(1)
    assert content(1)[0] != content(2)[0]


def test_no_name_and_no_flag_occurs_twice_even_beside_another_atlas(atlases):
    beside = Atlas("validation", 3, worlds=2, countries=8, beside=atlases["heldout"])
    countries = [c for atlas in (beside, atlases["heldout"]) for world in atlas.worlds for c in world.countries]
    assert len({c.flag for c in countries}) == len({c.name for c in countries}) == 32


@pytest.mark.parametrize("family", FAMILIES)
def test_every_gold_step_can_be_answered_from_its_knowledge_base_and_from_no_other(atlases, family):
    atlas = atlases["heldout"]
    passages = {kb: list(atlas.passages(kb)) for kb in KNOWLEDGE_BASES}
    questions = [question for question in atlas.questions(160) if question.family == family]
    assert len(questions) >= 16
    for question in questions:
        assert (question.image is not None) == (family == "picture" or family.startswith("image"))
        assert bool(question.gold_steps) == (family != "picture")
        for step in question.gold_steps:
            assert asked_need(step.query, [step]) is step
            assert any(holds_answer(passage, step) for passage in passages[step.kbs[0]])
            elsewhere = [passage for kb in KNOWLEDGE_BASES if kb not in step.kbs for passage in passages[kb]]
            assert not step.entities or not any(
                step.answer in passage.text and all(word in passage.text for word in step.entities) for passage in elsewhere
            )


def test_compared_values_differ_clearly_and_the_answer_is_the_larger(atlases):
    for question in atlases["train"].questions(160):
        if question.family == "compare":
            first, second = (int(step.answer) for step in question.gold_steps)
            assert abs(first - second) >= SMALLEST_GAP
            assert question.answers[0] in question.gold_steps[first < second].query


def test_a_small_atlas_still_has_as_many_questions_as_asked_for():
    questions = Atlas("train", 0, worlds=1, countries=2).questions(200)
    assert len({question.id for question in questions}) == 200


def test_photographs_of_a_flag_differ_but_keep_its_colours():
    world = World("train", 9, countries=6)
    pixels = np.random.default_rng(0)
    for country in world.countries:
        one, other = (photograph(country.flag, pixels).astype(float) for _ in range(2))
        assert np.abs(one - other).max() > 20
        assert np.abs(one - draw(country.flag)).mean() < 40
        assert describe(country.flag)


def test_pictures_are_png_bytes_that_decode(atlases):
    question = next(question for question in atlases["train"].questions(16) if question.image)
    assert decode(question.image.data).size == (56, 56)
