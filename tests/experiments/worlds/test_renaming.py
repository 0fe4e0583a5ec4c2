"""Turns about other countries: the same sentences with other names, alike where the old ones were alike."""

from __future__ import annotations

import itertools
import random

import pytest

from experiments.worlds.atlas import SYLLABLES, belongs
from experiments.worlds.teacher import NAME, demonstrations, renamed
from rollout.records import UNKNOWN
from rollout.turn_parser import parse_answer


@pytest.fixture(scope="module")
def pairs():
    rng = random.Random(0)
    return [(turn, renamed(turn, rng)) for turn in itertools.islice(demonstrations(6), 600)]


def names(turn) -> list[str]:
    found = NAME.finditer(f"{turn.message.user}\n{turn.response}")
    return [match[0] for match in found if match[2] in SYLLABLES]


def test_every_new_name_belongs_to_the_training_worlds(pairs):
    assert all(belongs(name, "train") for _, turn in pairs for name in names(turn))


def test_names_that_shared_a_syllable_share_one_and_no_others_do(pairs):
    for old, new in pairs:
        before = [syllable.lower() for name in names(old) for syllable in name.split("-")]
        after = [syllable.lower() for name in names(new) for syllable in name.split("-")]
        assert [before.index(syllable) for syllable in before] == [after.index(syllable) for syllable in after]


def test_only_names_and_values_change(pairs):
    for old, new in pairs:
        assert new.kind == old.kind
        assert new.image is old.image
        template = [NAME.sub("*", text) for text in (old.message.user, new.message.user)]
        if old.kind == "answer":
            template = ["".join("0" if c.isdigit() else c for c in text) for text in template]
        assert template[0] == template[1]


def test_an_answer_still_stands_in_its_passages(pairs):
    answers = [(parse_answer(turn.response), turn.message.user) for _, turn in pairs if turn.kind == "answer"]
    assert len(answers) > 200
    assert all(answer in (UNKNOWN, "") or answer in passages for answer, passages in answers)


def test_most_turns_are_about_somebody_else(pairs):
    named = [(names(old), names(new)) for old, new in pairs if names(old)]
    assert sum(old != new for old, new in named) > 0.9 * len(named)
