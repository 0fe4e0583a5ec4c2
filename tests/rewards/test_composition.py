"""Rewards put together by configuration, and rewards of one's own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from scored_episode import RETRIEVERS, episode, same

from rewards.actor import judged_turns, score_trajectory
from rewards.config import RewardConfig
from rewards.terms import TERMS, RewardError, composed_of


def scored(config: RewardConfig, final: str = "41"):
    return score_trajectory(episode(final), same, config, RETRIEVERS)


def values(name: str, final: str = "41") -> list[tuple[str, int, float | None]]:
    """(kind, place among its siblings, value) of every turn."""
    found = judged_turns(episode(final), same, RewardConfig(), RETRIEVERS)
    return [(group.state.kind, place, TERMS[name].value(turn)) for group, place, turn in found]


def of_kind(name: str, kind: str, final: str = "41") -> list[float | None]:
    return [value for found, _, value in values(name, final) if found == kind]


def test_the_step_reward_as_a_term_is_the_reward_without_terms():
    plain, named = scored(RewardConfig()), scored(RewardConfig(terms={"step": 1.0}))
    assert [turn.reward.total for turn in named] == [turn.reward.total for turn in plain]
    assert len(plain) == 11


def test_weights_add_up_and_say_what_came_from_where():
    config = RewardConfig(terms={"step": 1.0, "retrieval_cost": {"plan": 0.1}})
    search, stop, *_ = scored(config)
    assert search.reward.parts == {"step": pytest.approx(1.0), "retrieval_cost": pytest.approx(-0.1)}
    assert search.reward.total == pytest.approx(0.9)
    assert stop.reward.total == 0.0
    assert "retrieval_cost" not in scored(config)[2].reward.parts  # an answer turn
    informed = scored(RewardConfig(terms={"retrieval_cost": 0.1}))[0].reward
    assert (informed.total, informed.components["routing"], informed.components["query"]) == (pytest.approx(-0.1), 1.0, 1.0)


def test_malformed_turns_earn_the_least_that_each_term_gives():
    config = RewardConfig(terms={"step": 1.0, "retrieval_cost": 0.1})
    malformed = next(turn for turn in scored(config) if turn.turn.text == "Tasla!")
    assert malformed.reward.total == pytest.approx(-0.1)
    assert malformed.reward.components["format"] == 0.0


def test_outcome_only_gives_every_turn_of_the_trunk_what_the_answer_earned():
    assert of_kind("outcome", "plan") == [1.0, None, None, 1.0, 1.0, None]
    assert of_kind("outcome", "plan", final="17") == [0.0, None, None, 0.0, 0.0, None]
    assert of_kind("outcome", "final") == [1.0, 0.0]


def test_a_search_costs_and_stopping_does_not():
    assert of_kind("retrieval_cost", "plan") == [-1.0, 0.0, -1.0, -1.0, 0.0, -1.0]
    assert of_kind("retrieval_cost", "answer") == [None, None, None]


def test_evidence_counts_once_and_passages_seen_again_count_against():
    assert of_kind("new_evidence", "plan") == [0.5, None, None, 0.5, 0.0, None]
    assert of_kind("redundancy", "plan") == [0.0, None, None, -0.5, 0.0, None]


def test_routing_alone_pays_for_the_right_knowledge_base_and_for_stopping_in_time():
    assert of_kind("routing", "plan") == [1.0, 0.0, 0.0, 1.0, 1.0, 0.0]


def test_every_term_names_its_source_and_stays_above_its_lowest_value():
    for name, term in TERMS.items():
        assert term.source
        assert all(value is None or term.low <= value <= 1.0 for _, _, value in values(name))


def own(folder: Path, body: str, monkeypatch, name: str) -> str:
    (folder / f"{name}.py").write_text(f"def reward(turn):\n    {body}\n")
    monkeypatch.syspath_prepend(str(folder))
    return f"{name}:reward"


def test_a_reward_of_ones_own_is_a_function_named_in_the_configuration(tmp_path, monkeypatch):
    name = own(tmp_path, "return None if turn.answer is None else 1 / len(turn.answer)", monkeypatch, "brevity")
    turns = scored(RewardConfig(terms={name: {"final": 0.5}}))
    assert [turn.turn.kind for turn in turns] == ["final", "final"]
    assert turns[0].reward.parts == {name: 0.25}


@pytest.mark.parametrize("what", ["turn.outcome", "turn.step and 1.0"])
def test_a_reward_of_ones_own_is_not_told_what_came_of_one_sibling_only(tmp_path, monkeypatch, what):
    name = own(tmp_path, f"return {what}", monkeypatch, f"came_of_it_{len(what)}")
    turns = scored(RewardConfig(terms={"format": 1.0, name: 1.0}))
    told: dict[tuple[str, str], list[bool]] = {}
    for turn in turns:
        told.setdefault((turn.turn.kind, turn.state_key), []).append(name in turn.reward.parts)
    assert all(len(set(siblings)) == 1 for siblings in told.values())
    assert [siblings for (kind, _), siblings in told.items() if kind == "answer"] == [[False, False], [True]]


@pytest.mark.parametrize(("body", "found"), [("return float('nan')", "nan"), ("return 'good'", "'good'"), ("return True", "True")])
def test_a_reward_that_is_no_number_is_named_with_its_question(tmp_path, monkeypatch, body, found):
    name = own(tmp_path, body, monkeypatch, f"wrong_{abs(hash(body))}")
    with pytest.raises(RewardError, match=rf"reward {name} returned {found} for a plan turn of question q1; expected a finite number"):
        scored(RewardConfig(terms={name: 1.0}))


def test_a_reward_that_raises_is_named_with_its_line_and_its_question(tmp_path, monkeypatch):
    name = own(tmp_path, "return 1 / 0", monkeypatch, "divides")
    with pytest.raises(
        RewardError, match=rf"reward {name} raised ZeroDivisionError: .*divides\.py:2\) for a plan turn of question q1"
    ) as caught:
        scored(RewardConfig(terms={name: 1.0}))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("terms", "said"),
    [
        ({"kindness": 1.0}, r"reward\.terms\.kindness: no such reward; expected MODULE:FUNCTION or one of step, "),
        ({"no_such_module:reward": 1.0}, r"No module named 'no_such_module'; expected MODULE:FUNCTION, importable"),
        ({"math:no_such": 1.0}, r"has no attribute 'no_such'"),
        ({"math:pi": 1.0}, r"found float, expected a function"),
        ({"step": "much"}, r"reward\.terms\.step: weight 'much'; expected a number"),
        ({"step": {"thought": 1.0}}, r"'thought' is no kind of turn; expected plan, answer, final"),
    ],
)
def test_a_term_that_cannot_be_used_says_why(terms, said):
    with pytest.raises(RewardError, match=said) as caught:
        composed_of(terms)
    assert "\n" not in str(caught.value)


def test_information_gain_is_what_the_rollout_measured_and_nothing_where_it_did_not():
    plain = episode()
    groups = tuple(
        replace(group, gains=(0.25, -0.5)[: len(group.turns)]) if group.state.kind == "answer" else group for group in plain.groups
    )
    config = RewardConfig(terms={"information_gain": 2.0})
    turns = score_trajectory(replace(plain, groups=groups), same, config, RETRIEVERS)
    assert [turn.reward.total for turn in turns] == [0.5, -2.0, 0.5]  # the second one is malformed
    assert score_trajectory(plain, same, config, RETRIEVERS) == []
