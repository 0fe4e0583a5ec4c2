"""Chats of several turns: a follow-up becomes a question that stands alone."""

from __future__ import annotations

import pytest
from scripted import Library, Script
from test_episode_pool import run

from experiments.worlds.teacher import answer_response, plan_response
from rollout.config import RolloutConfig
from rollout.episode_pool import EpisodePool
from rollout.follow_ups import parse_rewrite
from rollout.records import Question

CHAT = [("What is the capital of Kormu ?", "Tasla")]
REWRITTEN = "What is the currency of Kormu ?"


def answered(policy, rewrite: str, earlier=CHAT, **config):
    """(events, trajectory, prompts) of a follow-up."""

    def say(kind, prompt, sibling):
        if kind == "rewrite":
            return rewrite
        if kind == "plan":
            return plan_response("t", *(("None", "None") if "Sub-question 1" in prompt else ("currency of Kormu", "Text Retriever")))
        return answer_response("t", "Rell")

    engine = Script(policy, say)
    pool = EpisodePool(engine, Library(), join="as_they_come")
    settings = RolloutConfig(mode="chain", group_size=1, passages=1, **config)
    pool.add(Question("q", "and its currency ?", ()), settings, 0, earlier=earlier)
    events, trajectories = run(pool, [0])
    return events, trajectories.get(0), engine.prompts


def test_a_follow_up_is_rewritten_first_and_the_episode_goes_on_with_its_new_words(fresh_policy):
    events, trajectory, prompts = answered(fresh_policy, f"<think>its is Kormu</think><question>{REWRITTEN}</question>")
    assert [event.kind for event in events] == ["rewritten", "planned", "searched", "answered", "planned", "finished"]
    assert (events[0].question, trajectory.question.text, trajectory.answer) == (REWRITTEN, REWRITTEN, "Rell")
    assert [group.state.kind for group in trajectory.groups] == ["rewrite", "plan", "answer", "plan", "final"]
    for text in ("What is the capital of Kormu ?", "Tasla", "and its currency ?"):
        assert text in prompts[0]
    assert REWRITTEN in prompts[1]
    assert not any("and its currency ?" in prompt or "Tasla" in prompt for prompt in prompts[1:])


def test_a_rewrite_that_cannot_be_read_leaves_the_question_as_it_was_asked(fresh_policy):
    events, trajectory, prompts = answered(fresh_policy, answer_response("t", "Rell"))
    assert events[0].question == trajectory.question.text == "and its currency ?"
    assert "and its currency ?" in prompts[1]
    assert "Kormu" not in prompts[1]


def test_a_question_without_a_chat_has_no_rewrite_turn(fresh_policy):
    events, trajectory, _ = answered(fresh_policy, "unused", earlier=())
    assert events[0].kind == "planned"
    assert trajectory.groups[0].state.kind == "plan"


def test_a_chat_that_fits_in_no_prompt_fails_and_names_the_limit(fresh_policy):
    events, _, _ = answered(fresh_policy, "unused", max_prompt_tokens=20)
    assert [event.kind for event in events] == ["failed"]
    assert "rewrite prompt" in events[0].error


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("<think>x</think> <question> Kormu's currency in 1990? </question>\n", "Kormu's currency in 1990?"),
        ("<question>What is the currency of Kormu in 1990?</question>", "What is the currency of Kormu in 1990?"),
        ("<question>What is the currency in 1990?</question>", "What is the currency in 1990?"),
        ("<question>What is the currency of Kormu?</question>", None),  # 1990 is lost
        ("<question>Where was Jane Austen born in 1990?</question>", None),  # the example of the prompt
        ("<question>What is the currency of Kormu in 1990 and 1991?</question>", None),
        ("<question> </question>", None),
        ("What is the currency of Kormu in 1990?", None),
        ("<question>in 1990?</question><question>in 1990?</question>", None),
        ("<answer>Rell in 1990</answer>", None),
    ],
)
def test_a_rewrite_keeps_the_names_of_the_question_and_takes_others_only_from_the_chat(text, found):
    assert parse_rewrite(text, "and its currency in 1990?", "Question: What is the capital of Kormu?\nAnswer: Tasla\n") == found
