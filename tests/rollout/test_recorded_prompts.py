"""Prompts in files, and prompts as the released checkpoints were trained with them."""

from __future__ import annotations

import json
import random
import re
from dataclasses import fields, replace
from pathlib import Path

import pytest
from scripted import Card

from experiments.config import RunConfigError, load_config
from retrieval_actors.records import Passage
from rollout.config import RolloutConfig
from rollout.episode import Log, Surroundings, answer
from rollout.prompts import PAPER, PROMPT_SETS, PromptSet
from rollout.records import Action, Exchange

STEPS = (Path(__file__).parents[2] / "../shared/data/r1router/grpo_dataset_valid_new.jsonl").resolve()
needs_steps = pytest.mark.skipif(not STEPS.is_file(), reason="the recorded steps are not beside the repository")


def one_line(text: str) -> str:
    return re.sub(r"\s+", " ", text.replace("<image>", "")).strip()


@needs_steps
def test_every_published_plan_and_final_prompt_is_laid_out_as_it_was_recorded():
    prompts, compared = PROMPT_SETS[str(STEPS)], 0
    for line in STEPS.read_text(encoding="utf-8").splitlines():
        steps = json.loads(line)["steps"]
        plans = [step for step in steps if step["step_type"] == "ret"]
        answers = [step for step in steps if step["step_type"] == "ans"]
        question = plans[0]["problem"].split("Origin question: ", 1)[1].split("\n")[0].replace("<image>", "").strip()
        history: list[Exchange] = []
        for number, step in enumerate(plans):
            message = prompts.plan(question, True, history, "")
            assert one_line(message.user) == one_line(step["problem"])
            assert message.system.split() == step["system"].split()
            if number < len(answers) - 1:
                history.append(Exchange(step["answer"]["query"], "text", answers[number]["answer"]))
        message = prompts.final(question, True, history)
        assert one_line(message.user) == one_line(answers[-1]["problem"])
        assert message.system.split() == answers[-1]["system"].split()
        compared += len(plans) + 1
    assert compared == 346 + 119


@needs_steps
def test_passages_are_shown_under_the_names_that_the_checkpoints_know():
    prompts = PROMPT_SETS[str(STEPS)]
    passages = [Passage("1", "born in 1899", "Wisbar", kb="text"), Passage("2", "a | b", kb="table"), Passage("3", "more", kb="text")]
    message = prompts.answer("when was he born?", passages, False, 400)
    recorded = next(
        step
        for line in STEPS.read_text(encoding="utf-8").splitlines()
        for step in json.loads(line)["steps"][:-1]
        if step["step_type"] == "ans" and "ter-0: " in step["problem"]
    )
    assert message.user.startswith(recorded["problem"].split("ter-0: ")[0])
    assert "ter-0: Wisbar born in 1899\ntar-0: a | b\nter-1: more\n" in message.user
    assert message.user.split("Give me the answer")[1].startswith(recorded["problem"].split("Give me the answer")[1].split("Question: ")[0])
    assert message.system.split() == recorded["system"].split()


def test_the_picture_stands_where_the_prompts_say(fresh_policy, atlas):
    question = next(question for question in atlas.questions(16) if question.image)
    message = PAPER.plan("Whose flag?", True, (), "")
    first = fresh_policy.tokenizer.decode(fresh_policy.encode(message, question.image))
    message = replace(message, image_last=True)
    behind = fresh_policy.tokenizer.decode(fresh_policy.encode(message, question.image))
    pad = fresh_policy.tokenizer.convert_ids_to_tokens(fresh_policy.image_token_id)
    assert behind.count(pad) == first.count(pad) > 0
    assert first.index(pad) < first.index("Whose flag?")
    assert behind.index("Whose flag?") < behind.index(pad)


@needs_steps
@pytest.mark.parametrize(("prompts", "in_the_answer"), [("short", False), (str(STEPS), True)])
def test_answer_turns_see_the_picture_where_the_checkpoints_saw_it(fresh_policy, atlas, prompts, in_the_answer):
    question = next(question for question in atlas.questions(16) if question.image)
    around = Surroundings(fresh_policy, {"text": Card()}, RolloutConfig(prompts=prompts))
    reading = answer(Action("Who?", "text"), [Passage("1", "He.", kb="text")], question, around, random.Random(0), Log())
    assert (next(reading).state.image is not None) == in_the_answer


def wording(folder: Path, **changes: str) -> Path:
    keys = dict.fromkeys((field.name for field in fields(PromptSet)), "text") | {"answer_request": "Q: {query}"} | changes
    path = folder / f"{len(list(folder.iterdir()))}.yaml"
    path.write_text("".join(f"{key}: {json.dumps(text)}\n" for key, text in keys.items()))
    return path


def test_a_file_of_prompts_is_used_as_it_stands(tmp_path: Path):
    prompts = PROMPT_SETS[str(wording(tmp_path, plan_system="Send it to:\n{retrievers}", plan_request="Next?"))]
    message = prompts.plan("Who?", False, [Exchange("Where?", "text", "here")], "- Text Retriever: texts")
    assert message.system == "Send it to:\n- Text Retriever: texts"
    assert message.user == "Who?\nSub-question 1: Where?\nAnswer 1: here\nNext?"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"plan_sistem": "x"}, r"found \[.*'plan_sistem'.*expected texts under the keys plan_system"),
        ({"answer_request": "{question}"}, r"answer_request may hold {query} and no other braces"),
        ({"plan_system": "{"}, r"plan_system may hold {retrievers} and no other braces"),
    ],
)
def test_a_file_that_is_no_prompts_says_why(tmp_path: Path, changes, said):
    with pytest.raises(ValueError, match=said) as caught:
        PROMPT_SETS[str(wording(tmp_path, **changes))]
    assert "\n" not in str(caught.value)


def test_unknown_prompts_and_broken_step_data_sets_are_named(tmp_path: Path):
    with pytest.raises(ValueError, match=r"rollout\.prompts is 'long'; expected short, paper, a YAML file"):
        PROMPT_SETS["long"]
    broken = tmp_path / "steps.jsonl"
    broken.write_text('{"steps": [{"step_type": "ret", "system": "s"}]}\n{"images": []}\n')
    with pytest.raises(ValueError, match=r"steps\.jsonl:2: not a recorded trajectory"):
        PROMPT_SETS[str(broken)]


@needs_steps
def test_recorded_prompts_are_looked_for_beside_the_data_as_well():
    published = f"r1router/{STEPS.name}"
    config = load_config([f"data.folder={STEPS.parents[1]}", f"prompts.from_dataset={published}"])
    assert Path(config.rollout.prompts).resolve() == STEPS
    with pytest.raises(RunConfigError, match=r"rollout\.prompts is 'r1router/"):
        load_config(["data.folder=nowhere", f"prompts.from_dataset={published}"])
