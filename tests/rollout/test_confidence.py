"""How far an answer can be trusted: what each passage adds, the signals of an episode, and why an answer is refused."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
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
from rollout.information_gain import passage_support
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

    def probability(passages) -> float:
        """Through the model's own forward pass."""
        prompt = fresh_policy.encode(SHORT.answer("Where?", passages, False, 400), None)
        ids = torch.tensor(np.concatenate([prompt, read.answer.response_ids])[None].astype(np.int64))
        with torch.no_grad():
            logprobs = fresh_policy.model(input_ids=ids).logits[0].float().log_softmax(-1)
        return math.exp(np.mean([float(logprobs[place - 1, ids[0, place]]) for place in range(len(prompt), ids.shape[1])]))

    config = RolloutConfig(mode="chain", group_size=1, support=True, shuffle_passages=False)
    (trajectory,) = roll_out([Question("q", "What is it?", ())], Script(fresh_policy, say), Library(), config, seed=0)
    read, unread, _ = trajectory.steps
    left_out = [probability(read.passages[:i] + read.passages[i + 1 :]) for i in range(3)]
    sampled = math.exp(-0.5)  # what the script says of every token
    assert read.support == pytest.approx([sampled - each for each in left_out], abs=1e-6)
    drawn, message = replace(read.answer, temperature=0.7), SHORT.answer("Where?", read.passages, False, 400)
    (support,) = passage_support(fresh_policy, drawn, message, [SHORT.answer("Where?", read.passages[1:], False, 400)], None)
    assert support == pytest.approx(probability(read.passages) - left_out[0], abs=1e-6)  # at 0.7 the sampled log-probs are others
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
