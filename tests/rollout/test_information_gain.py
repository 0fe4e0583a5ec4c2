"""How probable the policy finds the gold answer, and what a sub-answer adds to it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scripted import Library, Script

from experiments.config import load_config
from experiments.worlds.teacher import answer_response, plan_response
from rollout.config import RolloutConfig
from rollout.information_gain import CLOSING, OPENING, gold_probabilities
from rollout.prompts import SHORT
from rollout.record_files import read_rollouts, write_rollouts
from rollout.records import Exchange, Question
from rollout.roll_out import roll_out


def by_hand(policy, message, image, answer: str) -> float:
    """One sequence at a time, through the model's own forward pass and its own positions."""
    prompt = policy.encode(message, image)
    opening = policy.tokenizer(OPENING, add_special_tokens=False)["input_ids"]
    whole = policy.tokenizer(f"{OPENING} {answer}{CLOSING}", add_special_tokens=False)["input_ids"]
    last = len(whole) - len(policy.tokenizer(CLOSING, add_special_tokens=False)["input_ids"])
    ids = torch.tensor(np.concatenate([prompt, whole])[None].astype(np.int64))
    with torch.no_grad():
        logits = policy.model(input_ids=ids, **policy.pictured(ids, [image] if image else [])).logits[0].float()
    places = range(len(prompt) + len(opening), len(prompt) + last)
    return math.exp(np.mean([float(logits[place - 1].log_softmax(-1)[ids[0, place]]) for place in places]))


def test_the_probability_of_the_gold_answer_is_that_of_a_full_forward_pass(fresh_policy, atlas):
    pictured = next(question for question in atlas.questions(16) if question.image)
    history = (Exchange("Which country?", "text_image", "Kormu"),)
    for image, shown in ((None, False), (pictured.image, True)):
        messages = [SHORT.final("What is it?", shown, ()), SHORT.final("What is it, then?", shown, history)]
        found = gold_probabilities(fresh_policy, messages, image, ["Tasla", "Kor-mu and Belsi"])
        for message, probability in zip(messages, found, strict=True):
            expected = max(by_hand(fresh_policy, message, image, answer) for answer in ("Tasla", "Kor-mu and Belsi"))
            assert probability == pytest.approx(expected, rel=1e-4)
            assert 0 < probability < 1


def test_siblings_gain_by_their_own_sub_answers_and_equal_ones_alike(fresh_policy, tmp_path):
    def say(kind, prompt, sibling):
        if kind == "plan":
            return plan_response(
                "t", "None" if "Sub-question" in prompt else "Where?", "None" if "Sub-question" in prompt else "Text Retriever"
            )
        return answer_response("t", ["Tasla", "Runo", "Tasla"][sibling])

    question = Question("q", "What is it?", ("Tasla",))
    config = RolloutConfig(group_size=3, gold_gains=True)
    (trajectory,) = roll_out([question], Script(fresh_policy, say), Library(), config, seed=0)
    plan, answer, *rest = trajectory.groups
    assert plan.gains == ()
    assert all(group.gains == () for group in rest)
    first, second, third = answer.gains
    assert first == third != second
    messages = [SHORT.final(question.text, False, history) for history in ((), (Exchange("Where?", "text", "Runo"),))]
    before, after = gold_probabilities(fresh_policy, messages, None, question.answers)
    assert second == pytest.approx(after - before, abs=1e-6)
    write_rollouts(tmp_path / "rollouts", [trajectory], [])
    assert read_rollouts(tmp_path / "rollouts")[0][0].groups[1].gains == answer.gains
    (unmeasured,) = roll_out([question], Script(fresh_policy, say), Library(), RolloutConfig(group_size=3), seed=0)
    assert all(group.gains == () for group in unmeasured.groups)


def test_the_reward_turns_the_measurement_on():
    assert load_config(["reward.terms.information_gain=1.0"]).rollout.gold_gains
    assert not load_config([]).rollout.gold_gains
