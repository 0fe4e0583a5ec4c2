"""Prompts in files, and prompts as the released checkpoints were trained with them."""

from __future__ import annotations

import gzip
import io
import json
import random
import re
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PillowImage
from scripted import Card, Script

from experiments.cold_start import demonstration
from experiments.config import RunConfigError, load_config
from experiments.datasets.paper_sets import read_recorded_steps
from experiments.worlds.cold_start_training import encode
from experiments.worlds.teacher import demonstrations
from retrieval_actors.records import Passage
from rollout.config import RolloutConfig
from rollout.episode import EpisodeState, answer
from rollout.prompts import SHIPPED, PromptSet, RecordedPrompts, find_prompts, read_recorded_prompts
from rollout.records import Action, Exchange, RecordedTurn
from rollout.roll_out import roll_out

STEPS = (Path(__file__).parents[2] / "../shared/data/r1router/grpo_dataset_valid_new.jsonl").resolve()
needs_steps = pytest.mark.skipif(not STEPS.is_file(), reason="the recorded steps are not beside the repository")


def one_line(text: str) -> str:
    return re.sub(r"\s+", " ", text.replace("<image>", "")).strip()


@needs_steps
def test_every_published_plan_and_final_prompt_is_laid_out_as_it_was_recorded():
    prompts, compared = find_prompts(str(STEPS)), 0
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
    prompts = find_prompts(str(STEPS))
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


def recorded_in(folder: Path, mark: str) -> tuple[list[RecordedTurn], RecordedPrompts]:
    """A data set of one trajectory about a picture, read as turns and as prompts; `mark`: a prompt with its picture."""
    (folder / "flag.png").write_bytes(flag_png())
    steps = [
        {"step_type": "ret", "answer": {"query": "who?", "retriever": ["text retriever"]}},
        {"step_type": "ans", "answer": "Bela"},
        {"step_type": "ans", "answer": ["Bela"]},
    ]
    line = {"images": ["flag.png"], "steps": [{"system": "Be brief.", "problem": mark.format("Whose flag?")} | step for step in steps]}
    file = folder / "steps.jsonl"
    file.write_text(json.dumps(line) + "\n")
    return read_recorded_steps(file, folder)[0][0], read_recorded_prompts(file)


def flag_png() -> bytes:
    data = io.BytesIO()
    PillowImage.new("RGB", (40, 30), "red").save(data, "PNG")
    return data.getvalue()


@pytest.mark.parametrize(("mark", "first"), [("{}<image>", False), ("<image>\n{}", True)])
def test_a_recorded_picture_stands_in_its_place_in_rollouts_in_the_cold_start_and_in_live_prompts(fresh_policy, tmp_path, mark, first):
    turns, prompts = recorded_in(tmp_path, mark)
    pad = fresh_policy.tokenizer.convert_ids_to_tokens(fresh_policy.image_token_id)
    live = {"plan": prompts.plan("Whose flag?", True, (), ""), "answer": prompts.answer("Whose flag?", [], True, 9)}
    live["final"] = prompts.final("Whose flag?", True, ())
    script = Script(fresh_policy, lambda *_: "<think></think><answer>a</answer>")
    sampled = roll_out(turns, script, None, RolloutConfig(group_size=1), seed=0)
    for turn, trajectory in zip(turns, sampled, strict=True):
        imitated = encode(fresh_policy, demonstration(turn)).prompt
        np.testing.assert_array_equal(imitated, trajectory.groups[0].state.prompt_ids)
        for ids in (imitated, fresh_policy.encode(live[turn.kind], turn.image)):
            text = fresh_policy.tokenizer.decode(ids)
            assert pad in text
            assert (text.index(pad) < text.index("Whose flag?")) == first


@pytest.mark.parametrize("prompts", SHIPPED)
def test_the_shipped_prompts_have_the_picture_first_as_the_cold_start_policy_was_taught(fresh_policy, atlas, prompts):
    question = next(question for question in atlas.questions(16) if question.image)
    message = find_prompts(prompts).plan("Whose flag?", True, (), "")
    text = fresh_policy.tokenizer.decode(fresh_policy.encode(message, question.image))
    pad = fresh_policy.tokenizer.convert_ids_to_tokens(fresh_policy.image_token_id)
    assert text.index(pad) < text.index("Whose flag?")
    if prompts == "short":
        shown = next(turn for turn in demonstrations(3) if turn.kind == "plan" and turn.image)
        assert (
            encode(fresh_policy, shown).prompt.tolist()
            == fresh_policy.encode(replace(message, user=shown.message.user), shown.image).tolist()
        )


@needs_steps
@pytest.mark.parametrize(("prompts", "in_the_answer"), [("short", False), (str(STEPS), True)])
def test_answer_turns_see_the_picture_where_the_checkpoints_saw_it(fresh_policy, atlas, prompts, in_the_answer):
    question = next(question for question in atlas.questions(16) if question.image)
    state = EpisodeState(question, fresh_policy, {"text": Card()}, RolloutConfig(prompts=prompts), random.Random(0))
    reading = answer(state, Action("Who?", "text"), [Passage("1", "He.", kb="text")])
    assert (next(reading).image is not None) == in_the_answer


def wording(folder: Path, **changes: str) -> Path:
    keys = dict.fromkeys((field.name for field in fields(PromptSet)), "text") | {"answer_request": "Q: {query}"} | changes
    path = folder / f"{len(list(folder.iterdir()))}.yaml"
    path.write_text("".join(f"{key}: {json.dumps(text)}\n" for key, text in keys.items()))
    return path


def test_a_file_of_prompts_is_used_as_it_stands(tmp_path: Path):
    prompts = find_prompts(str(wording(tmp_path, plan_system="Send it to:\n{retrievers}", plan_request="Next?")))
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
        find_prompts(str(wording(tmp_path, **changes)))
    assert "\n" not in str(caught.value)


def test_unknown_prompts_and_broken_step_data_sets_are_named(tmp_path: Path):
    with pytest.raises(ValueError, match=r"rollout\.prompts is 'long'; expected short, paper, listed, a YAML file"):
        find_prompts("long")
    broken = tmp_path / "steps.jsonl"
    broken.write_text('{"steps": [{"step_type": "ret", "system": "s"}]}\n{"images": []}\n')
    with pytest.raises(ValueError, match=r"steps\.jsonl:2: not a recorded trajectory"):
        find_prompts(str(broken))


def test_recorded_prompts_are_read_from_every_form_of_data_file(tmp_path: Path):
    kinds = ("ret", "ans", "ans")
    line = json.dumps({"steps": [{"step_type": kind, "system": f" {number} "} for number, kind in enumerate(kinds)]})
    (tmp_path / "steps.jsonl.gz").write_bytes(gzip.compress(b"\xef\xbb\xbf" + line.encode() + b"\r\n\r\n"))
    (tmp_path / "steps.json").write_text(f"[{line}]")
    for name in ("steps.jsonl.gz", "steps.json"):
        found = find_prompts(str(tmp_path / name))
        assert (found.plan_system, found.answer_system, found.final_system) == ("0", "1", "2")


@needs_steps
def test_recorded_prompts_are_looked_for_beside_the_data_as_well():
    published = f"r1router/{STEPS.name}"
    config = load_config([f"data.folder={STEPS.parents[1]}", f"rollout.prompts={published}"])
    assert Path(config.rollout.prompts).resolve() == STEPS
    with pytest.raises(RunConfigError, match=r"rollout\.prompts is 'r1router/"):
        load_config(["data.folder=nowhere", f"rollout.prompts={published}"])
