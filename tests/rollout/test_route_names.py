"""The tokens of a plan turn with another knowledge base's name."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from scripted import Card, Library, Script
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from experiments.config import load_config
from experiments.evaluation.evaluator import rollout_as_measured
from experiments.worlds.teacher import answer_response, plan_response
from rollout.config import RolloutConfig
from rollout.record_files import read_rollouts, write_rollouts
from rollout.records import Question, ScoredTurn, Turn, TurnReward
from rollout.roll_out import roll_out
from rollout.route_names import with_routes
from rollout.trajectory_summary import summary_of
from rollout.turn_parser import parse_plan

RETRIEVERS = {"Text Retriever": "text", "Text Image Retriever": "text_image", "Table": "table"}
ASKED = plan_response("I need it.", "Which country?", "Text Retriever")


def byte_level(texts: list[str], vocabulary: int, by_words: bool = True) -> SimpleNamespace:
    """A policy whose tokenizer knows no tags: they are cut into pieces, as with most pretrained models. Without words, pieces join anywhere."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=by_words)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=vocabulary, initial_alphabet=alphabet, special_tokens=["<end>"]))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")
    return SimpleNamespace(tokenizer=fast, end_token_id=0, decode=lambda ids: fast.decode(ids, skip_special_tokens=True))


def sampled(policy, text: str, finish: str = "stop", ids: list[int] | None = None) -> Turn:
    ids = policy.tokenizer(text, add_special_tokens=False)["input_ids"] if ids is None else ids
    found = np.array([*ids, *[policy.end_token_id] * (finish == "stop")], np.int32)
    return Turn("plan", found, np.zeros(len(found), np.float32), finish, 0, policy.decode(found))


@pytest.fixture(params=["tags are tokens", "tags are pieces"])
def policy(request, fresh_policy):
    return fresh_policy if request.param == "tags are tokens" else byte_level([ASKED] * 20 + ["Table, Text Image, country"] * 9, 360)


@pytest.mark.parametrize("finish", ["stop", "length"])
@pytest.mark.parametrize("name", RETRIEVERS)
@pytest.mark.parametrize("space", [" ", "", "  "])
def test_every_name_makes_the_same_turn_with_another_knowledge_base_and_the_sampled_one_is_the_turn_itself(policy, name, finish, space):
    said = f"<think> a</think><sub-question> Which country?</sub-question><ret>{space}{name}</ret>"
    (turn,) = with_routes([sampled(policy, said, finish)], policy, RETRIEVERS)
    routes, ids = turn.routes, turn.response_ids
    assert routes.names == tuple(RETRIEVERS)
    assert routes.names[routes.sampled] == name
    assert policy.decode(ids[: routes.start]) == said.removesuffix(f"{space}{name}</ret>")
    np.testing.assert_array_equal(routes.ids[routes.sampled], ids[routes.start :])
    for kb, tokens in zip(RETRIEVERS.values(), routes.ids, strict=True):
        whole = np.concatenate([ids[: routes.start], tokens])
        assert parse_plan(policy.decode(whole), RETRIEVERS) == replace(parse_plan(said, RETRIEVERS), kb=kb)
        assert (tokens[-1] == policy.end_token_id) == (finish == "stop")
        natural = policy.tokenizer(policy.decode(whole), add_special_tokens=False)["input_ids"]
        assert tokens.tolist()[: len(natural) - routes.start] == natural[routes.start :]


def test_a_turn_in_tokens_that_the_tokenizer_would_not_choose_keeps_them(policy):
    written = ASKED.replace("Text Retriever", "text retriever")
    letter_by_letter = [
        i for piece in (ASKED.split(" Text")[0], *" Text Retriever", "</ret>") for i in sampled(policy, piece, "").response_ids
    ]
    for turn in (sampled(policy, written), sampled(policy, "", "stop", letter_by_letter)):
        (found,) = with_routes([turn], policy, RETRIEVERS)
        np.testing.assert_array_equal(found.routes.ids[0], turn.response_ids[found.routes.start :])
        assert len(found.routes.ids) == 3


def test_turns_that_do_not_ask_have_no_routes_and_neither_has_a_single_knowledge_base(policy):
    for text in (plan_response("t", "None", "None"), "<think> a</think>", plan_response("t", "Which?", "Oracle")):
        assert with_routes([sampled(policy, text)], policy, RETRIEVERS)[0].routes is None
    assert with_routes([sampled(policy, ASKED)], policy, {"Text Retriever": "text"})[0].routes is None


def test_a_name_that_begins_inside_a_token_of_the_tag_is_counted_and_not_guessed():
    joined = byte_level([ASKED] * 20, 600, by_words=False)
    (turn,) = with_routes([sampled(joined, ASKED)], joined, RETRIEVERS)
    assert turn.routes is not None
    assert turn.routes.ids == ()


def test_other_names_follow_the_tag_without_the_space_that_sentencepiece_adds_to_a_text():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    tokenizer.train_from_iterator([ASKED, *RETRIEVERS], trainers.BpeTrainer(vocab_size=1, special_tokens=["<end>"]))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")
    policy = SimpleNamespace(tokenizer=fast, end_token_id=0, decode=lambda ids: fast.decode(ids, skip_special_tokens=True))
    said = ASKED.replace("<ret> ", "<ret>")
    (turn,) = with_routes([sampled(policy, said)], policy, RETRIEVERS)
    start = turn.response_ids[: turn.routes.start]
    assert policy.decode(np.concatenate([start, turn.routes.ids[2]])) == said.replace("Text Retriever", "Table")


def test_a_rollout_records_routes_only_where_it_is_told_to(fresh_policy, tmp_path):
    class TwoKBs(Library):
        catalog = (Card(), Card("table", "Table Retriever"))

    def say(kind, prompt, sibling):
        if kind == "plan":
            return plan_response("t", "Where?", ["Text Retriever", "Table Retriever"][sibling % 2])
        return answer_response("t", "Tasla")

    question = Question("q", "What is it?", ("Tasla",))
    for record in (False, True):
        config = RolloutConfig(group_size=3, max_steps=1, record_routes=record)
        (trajectory,) = roll_out([question], Script(fresh_policy, say), TwoKBs(), config, 0)
        turns = [turn for group in trajectory.groups for turn in group.turns]
        assert [turn.routes is not None for turn in turns] == [record and turn.kind == "plan" for turn in turns]
        assert summary_of(trajectory).counts["unknown_routes"] == 0
    scored = ScoredTurn("s", np.array([1], np.int32), None, turns[0], TurnReward(1.0), "e", 1.0, "q", (0.5, 1.0))
    write_rollouts(tmp_path / "rollouts", [trajectory], [scored])
    (read,), (again,) = read_rollouts(tmp_path / "rollouts")
    assert again.route_rewards == (0.5, 1.0)
    for before, after in zip(trajectory.groups[0].turns, read.groups[0].turns, strict=True):
        assert [ids.tolist() for ids in after.routes.ids] == [ids.tolist() for ids in before.routes.ids]
        assert (after.routes.start, after.routes.names, after.routes.sampled) == (
            before.routes.start,
            before.routes.names,
            before.routes.sampled,
        )


def test_the_setting_of_the_learner_tells_it_to_and_a_measurement_does_not():
    config = load_config(["learner.routes=all"])
    assert config.rollout.record_routes
    assert not rollout_as_measured(config).record_routes
    assert not load_config([]).rollout.record_routes
