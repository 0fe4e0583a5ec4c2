"""How far an answer can be trusted: what each passage adds, the signals of an episode, and why an answer is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scripted import Library, Script

from experiments.worlds.teacher import answer_response, plan_response
from retrieval_actors.records import Passage
from rollout.confidence import (
    CITED,
    DISAGREE,
    FILE,
    NOT_CONFIDENT,
    NOTHING_FOUND,
    Calibration,
    cited,
    read_calibration,
    signals,
    why_refused,
    write_calibration,
)
from rollout.config import RolloutConfig
from rollout.information_gain import gold_probabilities
from rollout.prompts import SHORT
from rollout.records import Action, Exchange, Question, Step, Trajectory, Turn
from rollout.roll_out import roll_out

QUERY = "What is the capital of Kormu?"


def turn(kind: str, logprob: float) -> Turn:
    return Turn(kind, np.array([5, 6], np.int32), np.full(2, logprob, np.float32), "stop", 0, "")


def step(answer: str, text: str, support: tuple[float, ...] = (0.9, 0.0), logprob: float = -0.1, query: str = QUERY) -> Step:
    passages = (Passage("p1", text, kb="text"), Passage("p2", "The capital of Belsi is Runo.", kb="text"))
    exchange = Exchange(query, "text", answer)
    return Step(turn("plan", 0.0), Action(query, "text"), passages, turn("answer", logprob), exchange, support)


def episode(*steps: Step, answer: str = "Tasla", logprob: float = -0.2) -> Trajectory:
    return Trajectory(Question("q", QUERY, ("Tasla",)), steps, turn("final", logprob), answer, ())


GOOD = step("Tasla", "The capital of Kormu is Tasla.")


def test_a_passage_adds_what_leaving_it_out_takes_from_the_sub_answer(fresh_policy):
    def say(kind, prompt, sibling):
        if kind == "plan":
            asked = prompt.count("Sub-question")
            return plan_response("t", ("Where?", "Who?", "None")[asked], "Text Retriever" if asked < 2 else "None")
        return answer_response("t", "unknown" if "Who?" in prompt else "Tasla")

    config = RolloutConfig(mode="chain", group_size=1, support=True, shuffle_passages=False)
    (trajectory,) = roll_out([Question("q", "What is it?", ())], Script(fresh_policy, say), Library(), config, seed=0)
    read, unread, _ = trajectory.steps
    kept = [read.passages, *(read.passages[:i] + read.passages[i + 1 :] for i in range(3))]
    whole, *left_out = gold_probabilities(fresh_policy, [SHORT.answer("Where?", each, False, 400) for each in kept], None, ["Tasla"])
    assert read.support == pytest.approx([whole - each for each in left_out], abs=1e-6)
    assert unread.support == ()  # `unknown` cites nothing
    (other,) = roll_out([Question("q", "What is it?", ())], Script(fresh_policy, say), Library(), replace(config, support=False), seed=0)
    assert [each.support for each in other.steps] == [(), (), ()]


def test_a_passage_is_cited_only_if_the_sub_answer_needs_it():
    assert [passage.id for passage in cited(GOOD)] == ["p1"]
    assert cited(replace(GOOD, support=(CITED - 0.01, -0.5))) == []
    assert cited(replace(GOOD, support=())) == []


def test_signals_are_those_of_the_weakest_step_that_found_something():
    weak = step("Runo", "The leader of Kormu is Runo.", (0.3, 0.1), logprob=-0.7, query="Who leads Zalmu?")
    unread = step("unknown", "", (), logprob=-3.0)
    found = signals(episode(GOOD, weak, unread))
    assert found["final"] == pytest.approx(-0.2)
    assert found["read"] == pytest.approx(-0.7)
    assert (found["support"], found["named"], found["nothing"]) == (0.3, 0.0, 0.0)
    assert signals(episode(unread))["nothing"] == 1.0


def test_a_refusal_says_why():
    of_another_country = step("Tasla", "The capital of Zalmu is Tasla.")
    assert why_refused(episode()) == NOTHING_FOUND
    assert why_refused(episode(step("unknown", "", ()))) == NOTHING_FOUND
    assert why_refused(episode(of_another_country)) == NOTHING_FOUND
    assert why_refused(episode(GOOD, step("Runo", "The capital of Kormu is Runo."))) == DISAGREE
    assert why_refused(episode(replace(GOOD, support=(0.5, -0.4)))) == DISAGREE
    assert why_refused(episode(GOOD)) == NOT_CONFIDENT


def test_a_calibration_is_read_as_it_was_written_and_an_answer_of_unknown_has_no_confidence(tmp_path):
    calibration = Calibration({"final": 2.0, "named": 3.0}, -1.0)
    assert read_calibration(tmp_path) is None
    write_calibration(tmp_path, calibration)
    assert read_calibration(tmp_path) == calibration
    assert calibration.confidence(episode(GOOD)) == pytest.approx(1 / (1 + np.exp(0.4 - 3 + 1)), abs=1e-6)
    assert calibration.confidence(episode(GOOD, answer="Unknown.")) == calibration.confidence(episode(GOOD, answer="")) == 0.0
    (tmp_path / FILE).write_text('{"weights": {"final": "much"}, "bias": 0}')
    with pytest.raises(ValueError, match=r"confidence\.json: .*weights"):
        read_calibration(tmp_path)
