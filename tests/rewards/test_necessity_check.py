"""Which episodes show gold steps: the necessity check, and where each step can be looked up."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scripted import Card

from retrieval_actors.records import Passage
from rewards.config import RewardConfig
from rewards.necessity_check import FAILED, GUESSED, NEEDLESS, UNREAD, WRONG, candidate_of, found_steps
from rollout.config import RolloutConfig
from rollout.records import Action, Exchange, GoldStep, Image, Question, RecordedTurn, Step, Trajectory, Turn

CARDS = {name: Card(name=name, modality=name) for name in ("text", "text_image", "table")}
REWARD, ROLLOUT = RewardConfig(), RolloutConfig(mode="chain", group_size=1)
QUESTION = Question("q", "How many people live where?", ("right",))


def turn(kind: str, answer: str) -> Turn:
    return Turn(kind, np.array([5], np.int32), np.zeros(1, np.float32), "stop", 0, f"<think>t</think><answer>{answer}</answer>")


def looked_up(number: int, answer: str, holding: tuple[str, ...]) -> list[Step]:
    """A query to every knowledge base, as the method `ircot` records it: these passages hold the answer."""
    query, action = f"what is fact {number} ?", Action(f"what is fact {number} ?", "text")
    found = tuple(Passage(f"p{number}", f"{kb} : fact {number} is {answer}" if kb in holding else f"fact {number}", kb=kb) for kb in CARDS)
    beside = [
        Step(None, replace(action, kb=kb), (p,), None, Exchange(query, kb, "")) for kb, p in zip(CARDS, found, strict=True) if kb != "text"
    ]
    return [*beside, Step(turn("plan", ""), action, found, turn("answer", answer), Exchange(query, "text", answer))]


def episode(steps: list[list[Step]], answer: str, question: Question = QUESTION) -> Trajectory:
    return Trajectory(question, tuple(step for each in steps for step in each), turn("final", answer), answer, ())


def policy(needed: list[str], misread: tuple[str, ...] = ()):
    """Says `right` where the prompt of a final turn has all of these answers; reads what a passage says, but not in these knowledge bases."""

    def say(asked: RecordedTurn, kb: str = "") -> str:
        if asked.kind == "final":
            known = re.findall(r"^Answer \d+: (.*)$", asked.user, re.M)
            return turn("final", "right" if set(needed) <= set(known) else "wrong").text
        held = re.findall(r"fact \d+ is (\w+)", asked.user)
        return turn("answer", held[0] if held and kb not in misread else "unknown").text

    return say


def found(say, *episodes: Trajectory):
    candidates = [candidate_of(each, ROLLOUT, REWARD, CARDS) for each in episodes]
    said = {}
    for candidate in candidates:
        if not isinstance(candidate, str):
            said |= {asked: say(asked) for asked in candidate.without}
            said |= {asked: say(asked, kb) for readings in candidate.readings for kb, asked in readings.items()}
    return found_steps(candidates, said, REWARD)


FACTS = st.lists(st.tuples(st.booleans(), st.booleans(), st.sets(st.sampled_from(list(CARDS)))), min_size=1, max_size=4)


@given(FACTS, st.booleans())
def test_an_episode_shows_gold_steps_exactly_if_each_sub_answer_is_needed_known_and_held(facts, answered):
    """Each fact: whether the policy needs it, whether the episode found it, and the knowledge bases whose passages hold it."""
    names = [f"a{number}" if known else "unknown" for number, (_, known, _) in enumerate(facts)]
    steps = [looked_up(number, name, tuple(holding)) for (number, name), (_, _, holding) in zip(enumerate(names), facts, strict=True)]
    needed = [f"a{number}" for number, (need, _, _) in enumerate(facts) if need]
    result = found(policy(needed), episode(steps, "right" if answered else "wrong"))
    if not answered:
        assert result == WRONG
    elif not all(known and holding for _, known, holding in facts):
        assert result == UNREAD
    elif len(needed) < len(facts):
        assert result == NEEDLESS
    else:
        assert [(step.query, step.answer) for step in result] == [(f"what is fact {n} ?", f"a{n}") for n in range(len(facts))]
        assert [step.kbs for step in result] == [tuple(kb for kb in CARDS if kb in holding) for _, _, holding in facts]


@given(st.sets(st.sampled_from(list(CARDS)), min_size=1), st.sets(st.sampled_from(list(CARDS))))
def test_those_knowledge_bases_are_right_that_hold_the_answer_and_give_it_when_read_alone(holding, misread):
    result = found(policy(["a0"], tuple(misread)), episode([looked_up(0, "a0", tuple(holding))], "right"))
    assert (UNREAD if result == UNREAD else set(result[0].kbs)) == ((holding - misread) or UNREAD)


def test_the_first_episode_that_passes_gives_the_steps_and_the_best_of_the_others_says_why_there_are_none():
    say, first, second = policy(["a0"]), looked_up(0, "a0", ("text",)), looked_up(1, "a1", ("table",))
    alone, both, wrong, guessed = (
        episode(steps, answer) for steps, answer in (([first], "right"), ([first, second], "right"), ([], "x"), ([], "right"))
    )
    failed = replace(alone, error="too long")
    assert found(say, failed, wrong, both, alone, both) == (GoldStep("what is fact 0 ?", ("text",), "a0"),)
    assert found(say, wrong, both, wrong) == NEEDLESS
    assert found(say, failed, failed) == FAILED
    assert found(say, failed, wrong, guessed) == GUESSED


def test_nothing_has_to_be_looked_up_only_where_most_episodes_were_right_without_a_search():
    right, wrong, searched = episode([], "right"), episode([], "wrong"), episode([looked_up(0, "a0", ("text",))], "right")
    assert found(policy([]), right, right, wrong) == ()
    assert found(policy([]), right, right, searched) == ()  # which was right without its sub-answer, too
    assert found(policy([]), right, wrong) == GUESSED
    assert found(policy(["a0"]), right, right, searched) == (GoldStep("what is fact 0 ?", ("text",), "a0"),)


def test_of_a_chain_each_sub_answer_is_needed_though_the_last_one_gives_the_answer():
    """The policy repeats the last sub-answer, whatever came before."""
    first, second = looked_up(0, "Tasla", ("text",)), looked_up(1, "right", ("table",))
    asked = Action("what is fact 1 of Tasla ?", "text")
    chained = [replace(step, action=asked, exchange=replace(step.exchange, query=asked.query)) for step in second]
    chained[-1] = replace(chained[-1], passages=tuple(replace(p, text=f"{p.text} of Tasla") for p in chained[-1].passages))
    steps = found(policy(["right"]), episode([first, chained], "right"))
    assert [(step.query, step.answer) for step in steps] == [("what is fact 0 ?", "Tasla"), (asked.query, "right")]
    assert found(policy(["right"]), episode([first, second], "right")) == NEEDLESS  # nobody asked for what the first one found
    named = replace(QUESTION, text="What is fact 1 of Tasla?")
    assert found(policy(["right"]), episode([first, chained], "right", named)) == NEEDLESS


def test_a_question_without_answers_and_an_episode_with_a_failed_search_show_nothing():
    steps = [looked_up(0, "a0", ("text",))]
    assert found(policy(["a0"]), episode(steps, "right", replace(QUESTION, answers=()))) == WRONG
    assert found(policy(["a0"]), replace(episode(steps, "right"), search_errors=1)) == FAILED


def test_the_turns_that_are_asked_again_show_the_picture_where_the_episode_did():
    pictured = replace(QUESTION, image=Image.of(b"png"))
    candidate = candidate_of(episode([looked_up(0, "a0", ("text", "text_image"))], "right", pictured), ROLLOUT, REWARD, CARDS)
    assert [asked.image for asked in candidate.without] == [pictured.image]
    assert {kb: asked.image for kb, asked in candidate.readings[0].items()} == {"text": None, "text_image": pictured.image}
    assert len(candidate.asked) == 3
    assert "unknown" in candidate.without[0].user


def test_a_passage_without_the_names_of_the_query_holds_no_answer():
    steps = looked_up(0, "Tasla", ("text",))
    named = replace(steps[-1], exchange=Exchange("what is the capital of Kormu ?", "text", "Tasla"))
    assert found(policy(["Tasla"]), episode([[named]], "right")) == UNREAD
