"""The methods that a policy is compared with, over real retrieval, with an engine that says what the test tells it to."""

from __future__ import annotations

import random
from types import SimpleNamespace

import numpy as np
import pytest
from scripted import Script

from experiments.worlds.teacher import answer_response, plan_response
from retrieval_actors.records import Passage
from rollout.config import RolloutConfig
from rollout.episode import EpisodeState
from rollout.methods import METHODS, find_method, is_method, label_of
from rollout.records import GoldStep, Question, Turn, TurnGroup
from rollout.roll_out import roll_out
from rollout.searches import SearchRequest

KBS = ["text", "text_image", "table"]


@pytest.fixture
def two_steps(atlas):
    return next(q for q in atlas.questions(16) if q.family == "image_table")


def asks_once_then_stops(question):
    def say(kind, prompt, sibling):
        if kind == "plan":
            query, name = ("None", "None") if "Sub-question" in prompt else (question.gold_steps[0].query, "Text Image Retriever")
            return plan_response("t", query, name)
        return answer_response("t", "Kormu")

    return say


def run(method: str, question, policy, retriever, say=None, **settings):
    engine = Script(policy, say or asks_once_then_stops(question))
    config = RolloutConfig(mode="chain", group_size=1, routing=method, **settings)
    (trajectory,) = roll_out([question], engine, retriever, config, seed=0)
    return trajectory, engine.prompts


def walked(question, policy, routing: str, *plans: tuple[str, str]):
    """One episode in which each plan turn says the next of `plans`; every search finds the same passage."""
    said = iter(plans)
    names = {"text": "Text Retriever", "table": "Table Retriever"}
    cards = {kb: SimpleNamespace(name=kb, retriever_name=name, description=kb, modality=kb) for kb, name in names.items()}
    state = EpisodeState(question, policy, cards, RolloutConfig(mode="chain", group_size=1), random.Random(0))
    going, sent = find_method(routing, cards)(state), None
    while True:
        try:
            wanted = going.send(sent)
        except StopIteration as over:
            return over.value
        if isinstance(wanted, SearchRequest):
            sent = [Passage("p", "Runo is in Kormu.", kb=wanted.kb)]
            continue
        kind = wanted.kind
        text = plan_response("t", *next(said)) if kind == "plan" else answer_response("t", "Runo")
        sent = TurnGroup(wanted, (Turn(kind, np.array([5], np.int32), np.zeros(1, np.float32), "stop", 0, text),))


@pytest.mark.parametrize(
    ("gold", "routes"),
    [
        (None, ["text", None]),  # nobody knows: the policy decides
        ((), [None]),  # nothing is needed: the gold steps end it at once
        ((GoldStep("What is the capital of Kormu?", "table", "Runo", ("Kormu",)),), ["table", None]),
    ],
)
def test_oracle_routing_follows_gold_steps_and_the_policy_where_there_are_none(fresh_policy, gold, routes):
    question = Question("q", "What is the capital of Kormu?", ("Runo",), None, gold)
    trajectory = walked(question, fresh_policy, "oracle", ("What is the capital of Kormu?", "Text Retriever"), ("None", "None"))
    assert [step.action.kb for step in trajectory.steps] == routes


def test_oracle_routing_takes_any_right_knowledge_base_that_can_be_searched(fresh_policy):
    gold = GoldStep("What is the capital of Kormu?", ("text_image", "table"), "Runo", ("Kormu",))
    question = Question("q", "What is the capital of Kormu?", ("Runo",), None, (gold,))
    for named, searched in (("Table Retriever", "table"), ("Text Retriever", "table")):
        first = walked(question, fresh_policy, "oracle", ("What is the capital of Kormu?", named), ("None", "None")).steps[0]
        assert first.action.kb == searched


def test_oracle_routing_leaves_a_stop_that_comes_too_early(fresh_policy):
    gold = GoldStep("What is the capital of Kormu?", "table", "Runo", ("Kormu",))
    trajectory = walked(Question("q", "What is the capital of Kormu?", ("Runo",), None, (gold,)), fresh_policy, "oracle", ("None", "None"))
    assert [step.action.kb for step in trajectory.steps] == [None]


def asked(trajectory) -> list[str]:
    return [step.exchange.kb for step in trajectory.steps if step.exchange]


def test_direct_answers_at_once_from_the_question_alone(fresh_policy, retriever, two_steps):
    trajectory, prompts = run("direct", two_steps, fresh_policy, retriever)
    assert (asked(trajectory), trajectory.answer, len(prompts)) == ([], "Kormu", 1)
    assert [group.state.kind for group in trajectory.groups] == ["final"]


@pytest.mark.parametrize("kb", KBS)
def test_a_single_knowledge_base_is_searched_with_the_question_itself(fresh_policy, retriever, two_steps, kb):
    trajectory, prompts = run(f"single:{kb}", two_steps, fresh_policy, retriever, passages=2)
    assert asked(trajectory) == [kb]
    assert len(prompts) == 1
    assert [passage.kb for passage in trajectory.groups[0].state.passages] == [kb, kb]
    assert trajectory.steps[0].action.query == two_steps.text


def test_all_reads_every_knowledge_base_at_once(fresh_policy, retriever, two_steps):
    trajectory, prompts = run("all", two_steps, fresh_policy, retriever, passages=2)
    assert sorted(passage.kb for passage in trajectory.groups[0].state.passages) == sorted(KBS * 2)
    assert (trajectory.retrievals, len(prompts)) == (3, 1)


def test_interleaving_sends_every_query_everywhere_and_stops_when_the_policy_does(fresh_policy, retriever, two_steps):
    trajectory, prompts = run("ircot", two_steps, fresh_policy, retriever, passages=1)
    assert sorted(asked(trajectory)) == sorted(KBS)
    assert {step.exchange.query for step in trajectory.steps if step.exchange} == {two_steps.gold_steps[0].query}
    assert [group.state.kind for group in trajectory.groups] == ["plan", "answer", "plan", "final"]
    assert sorted(passage.kb for passage in trajectory.groups[1].state.passages) == sorted(KBS)
    assert sum("Sub-question" in prompt for prompt in prompts) == 2  # one exchange, not one for each knowledge base


def test_without_stopping_every_search_is_made_and_the_question_itself_is_asked(fresh_policy, retriever, two_steps):
    trajectory, _ = run("never_stop", two_steps, fresh_policy, retriever, max_steps=3)
    assert asked(trajectory) == ["text_image", "text", "table"]
    assert [step.action.query for step in trajectory.steps] == [two_steps.gold_steps[0].query, two_steps.text, two_steps.text]
    malformed, _ = run("never_stop", two_steps, fresh_policy, retriever, say=lambda *_: "nonsense")
    assert asked(malformed) == []


def test_every_method_says_what_it_isolates_and_unknown_ones_are_named(fresh_policy, retriever, two_steps):
    assert all(method.isolates and method.label for method in METHODS.values())
    assert is_method("single:text")
    assert not any(map(is_method, ("single", "single:", "direct:text", "everything")))
    assert label_of("single:table") == "one knowledge base, one answer turn: table"
    with pytest.raises(ValueError, match=r"rollout\.routing is 'single:news'; known knowledge bases are text, text_image"):
        find_method("single:news", ["text", "text_image"])
    with pytest.raises(ValueError, match=r"expected one of policy, random, oracle, .*single:KB"):
        run("nothing", two_steps, fresh_policy, retriever)
