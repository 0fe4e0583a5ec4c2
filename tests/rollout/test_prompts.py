from __future__ import annotations

import pytest

from experiments.worlds.teacher import answer_response, plan_response
from retrieval_actors.records import Passage
from rollout.prompts import SHORT, find_prompts
from rollout.records import Action, Exchange
from rollout.turn_parser import parse_answer, parse_plan

RETRIEVERS = {"Text Retriever": "text", "Table Retriever": "table"}


def test_a_plan_turn_asks_one_knowledge_base_or_stops():
    assert parse_plan(plan_response("t", "Who?", "Table Retriever"), RETRIEVERS) == Action("Who?", "table")
    assert parse_plan(plan_response("t", "None", "None"), RETRIEVERS) == Action("", None)
    assert parse_plan(
        "<think>\nlong\n</think>\n<sub-question>\nWho?\n</sub-question>\n<ret> text retriever </ret>\n", RETRIEVERS
    ) == Action("Who?", "text")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Who?",
        plan_response("t", "Who?", "Web Search"),
        plan_response("t", "Who?", "Text Retriever, Table Retriever"),
        plan_response("t", "Who?", "None"),
        plan_response("t", "None", "Text Retriever"),
        plan_response("t", "", "Text Retriever"),
        "so " + plan_response("t", "Who?", "Text Retriever"),
        plan_response("t", "Who?", "Text Retriever") + plan_response("t", "Who?", "Text Retriever"),
        "<sub-question>Who?</sub-question><ret>Text Retriever</ret>",
        "<think>t</think><ret>Text Retriever</ret><sub-question>Who?</sub-question>",
    ],
)
def test_any_other_plan_turn_is_malformed(text):
    assert parse_plan(text, RETRIEVERS) is None


def test_an_answer_turn_has_one_answer_that_is_not_empty():
    assert parse_answer(answer_response("I see.", "Da-vel")) == "Da-vel"
    for malformed in ("Da-vel", "<answer>Da-vel</answer>", answer_response("t", ""), answer_response("t", "a") + answer_response("t", "b")):
        assert parse_answer(malformed) is None


def test_later_turns_see_sub_answers_and_no_passages():
    history = (Exchange("What is the capital?", "text", "Da-vel"),)
    for message in (SHORT.plan("Why?", False, history, ""), SHORT.final("Why?", False, history)):
        assert "Sub-question 1: What is the capital?\nAnswer 1: Da-vel" in message.user


def test_long_passages_are_cut_at_a_word():
    passage = Passage("1", "word " * 50, title="Title")
    assert "[1] Title: word word ...\n" in SHORT.answer("Why?", [passage], False, 17).user


def test_the_paper_prompts_name_every_retriever():
    message = find_prompts("paper").plan("Why?", False, (), "- Text Retriever: sentences")
    assert "- Text Retriever: sentences" in message.system
    assert "<sub-question>" in message.system
