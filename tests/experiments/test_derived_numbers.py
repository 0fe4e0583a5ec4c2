"""The numbers that are printed when a run starts are those that the code then makes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from experiments.config import load_config
from experiments.derived_numbers import derived, derived_table, micro_batches
from learner.micro_batches import Response, Row, cut


def numbers(*settings: str) -> dict[str, int]:
    return {number.what: number.value for number in derived(load_config(list(settings)))}


def test_the_numbers_follow_from_the_settings():
    found = numbers("train.questions_per_iteration=16", "rollout.group_size=8", "rollout.max_steps=3", "learner.updates_per_iteration=2")
    assert (found["questions a worker"], found["turns of an episode"], found["groups"], found["samples"]) == (8, 7, 112, 896)
    assert (found["groups of an update"], found["sampled tokens"]) == (56, 16 * 8 * 7 * 64)
    assert numbers("offline_steps.yaml")["groups"] == 16


def test_a_longer_plan_turn_counts_for_every_step():
    assert numbers("rollout.max_new_tokens_by_kind.plan=100")["sampled tokens"] == 16 * 8 * (3 * 100 + 3 * 64 + 64)


def test_a_worker_without_a_question_is_noted():
    notes = [number.note for number in derived(load_config(["train.questions_per_iteration=1"])) if number.note]
    assert any("1 of 2 rollout workers have no question" in note for note in notes)


@given(
    groups=st.integers(1, 12), prompt=st.integers(1, 40), response=st.integers(2, 12), siblings=st.integers(1, 9), room=st.integers(8, 128)
)
def test_the_learner_cuts_the_longest_turns_into_as_many_micro_batches(groups, prompt, response, siblings, room):
    rows = []
    for _ in range(groups):  # as learner.micro_batches.rows_of cuts a group
        begun, length = [], prompt
        for _ in range(siblings):
            if begun and length + response - 1 > room:
                rows.append(_row(prompt, response, len(begun)))
                begun, length = [], prompt
            begun.append(1)
            length += response - 1
        rows.append(_row(prompt, response, len(begun)))
    assert len(cut(rows, room)) <= micro_batches(groups, prompt, response, siblings, room)


def _row(prompt: int, response: int, siblings: int) -> Row:
    none = np.zeros(response, np.float32)
    return Row(np.zeros(prompt, np.int32), None, tuple(Response(none.astype(np.int32), none, 0.0, 1.0) for _ in range(siblings)))


@pytest.mark.parametrize("file", ["laptop.yaml", "offline_steps.yaml"])
def test_the_table_shows_every_number_with_its_arithmetic(file):
    console = Console(width=160, record=True, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(derived_table(load_config([file])))
    text = console.export_text()
    for number in derived(load_config([file])):
        assert number.what in text
        assert f"{number.value:,}" in text
