"""Relays: what the experiments about credit rest on."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter, defaultdict

import numpy as np
import pytest
from rich.console import Console

from experiments.cold_start import relay_teacher
from experiments.config import DataConfig, EvaluationConfig, RunConfigError, load_config
from experiments.datasets import ensure_knowledge_bases, load_dataset
from experiments.datasets.relay import load_relay
from experiments.worlds.cold_start_training import ColdStartConfig, train
from experiments.worlds.relay import Relay, permutation, query_for, sentence
from experiments.worlds.teacher import NAME
from experiments.worlds.teacher_search import KnowledgeBases
from rollout.needs import asked_need, open_needs
from rollout.policies import load_policy
from rollout.records import UNKNOWN, Exchange
from rollout.turn_parser import parse_answer, parse_plan

QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def world() -> Relay:
    return Relay("heldout", 3, names=10)


@pytest.fixture(scope="module")
def passages(world) -> dict[str, list[str]]:
    return {kb: [passage.text for passage in world.passages(kb)] for kb in world.kbs}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    settings = ["data.countries=8", f"data.kb_folder={tmp_path_factory.mktemp('relay') / 'kbs'}", "data.train_questions=200"]
    return load_config(["relay.yaml", *settings, "evaluation.questions=60", "evaluation.validation_questions=20"])


@pytest.fixture(scope="module")
def bases(run):
    dataset = load_dataset(run.data, run.evaluation, {})
    bases = KnowledgeBases(ensure_knowledge_bases(dataset.evaluation_kbs))
    asked = [(text, q) for q in dataset.heldout for text in (q.text, *(step.query for step in q.gold_steps))]
    bases.prepare(asked, run.rollout.passages)
    return dataset, bases


@pytest.fixture(scope="module")
def teacher(run):
    return relay_teacher(run, QUIET)


def names_in(texts) -> set[str]:
    return {match[0] for text in texts for match in NAME.finditer(text)}


def test_the_same_seed_is_the_same_world_and_another_is_another(world, passages):
    again, other = Relay("heldout", 3, names=10), Relay("heldout", 4, names=10)
    assert passages == {kb: [passage.text for passage in again.passages(kb)] for kb in again.kbs}
    assert world.questions(50) == again.questions(50)
    assert world.questions(50) != world.questions(50, seed=1)
    assert {*world.rings[0]} != {*other.rings[0]}


def test_where_relations_live_depends_on_the_seed_alone_and_every_knowledge_base_holds_one():
    drawn = [permutation(seed, 4, 5) for seed in range(40)]
    assert len({tuple(sorted(home.items())) for home in drawn}) > 25  # of 120
    for home in [*drawn, permutation(0, 2, 3), permutation(0, 6, 3), permutation(0, 1, 8)]:
        held = Counter(home.values())
        assert max(held.values()) - min(held.values()) <= 1
    assert Relay("train", 7).home == Relay("heldout", 7).home == permutation(7, 4, 5)


def test_training_validation_and_heldout_worlds_share_no_name():
    dataset = load_relay(DataConfig(name="relay", countries=10), EvaluationConfig())

    def named(questions) -> set[str]:
        return names_in(text for q in questions for text in (q.text, *q.answers, *(step.query for step in q.gold_steps)))

    train, validation, heldout = map(named, (dataset.train, dataset.validation, dataset.heldout))
    assert min(map(len, (train, validation, heldout))) == 50
    assert not train & validation | train & heldout | validation & heldout
    for sources, own in ((dataset.training_kbs, train), (dataset.evaluation_kbs, validation | heldout)):
        assert names_in(p.text for source in sources for p in source.passages()) == own
    evaluated = [name.partition("-")[0] for name in validation | heldout]
    assert len(set(evaluated)) == len(evaluated)  # one token tells them apart


def test_an_answer_stands_in_the_last_facts_of_its_chain_and_nowhere_near_its_beginning(world, passages):
    for question in world.questions(200):
        [answer], chain = question.answers, [step.entities[1] for step in question.gold_steps]
        assert answer not in question.text
        assert answer == question.gold_steps[-1].answer
        assert [step.answer for step in question.gold_steps[:-1]] == chain[1:]
        assert len(set(chain)) == len({step.entities[0] for step in question.gold_steps}) == 4
        for text in itertools.chain.from_iterable(passages.values()):
            assert not (answer in text and any(name in text for name in chain[:-1])), text


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_the_set_share_of_facts_stands_twice_and_no_other_passage_states_one(share):
    world = Relay("train", 1, names=10, doubled=share)
    places = defaultdict(set)
    for kb in world.kbs:
        for passage in world.passages(kb):
            places[passage.text].add(kb)
    stated = {sentence(*fact, value): set(world.homes(fact)) for fact, value in world.facts.items()}
    assert {text: kbs for text, kbs in places.items() if " is " in text} == stated
    assert sum(len(kbs) == 2 for kbs in stated.values()) == share * len(stated)
    assert all(world.home[fact[0]] == world.homes(fact)[0] for fact in world.facts)


def test_every_fact_has_a_distractor_with_its_relation_and_name_where_the_relation_does_not_live(world, passages):
    for (relation, name), value in world.facts.items():
        found = [(kb, text) for kb, texts in passages.items() for text in texts if text.startswith(f"The {relation} of {name} once met ")]
        [(kb, text)] = found
        assert kb != world.home[relation]
        assert value not in text
        ring = next(ring for ring in world.rings if value in ring)
        assert names_in([text]) - {name} <= set(ring)


def test_questions_are_different_and_all_are_found_where_more_are_asked_for():
    world = Relay("train", 0, hops=2, kbs=3, names=6)
    questions = world.questions(10**6)
    assert len({question.text for question in questions}) == len(questions) == 6 * 3 * 2


def test_every_question_is_answered_by_following_its_gold_steps_with_the_retrieval_of_a_run(bases, run):
    (dataset, found), home = bases, permutation(run.data.seed, 4, 5)
    assert len(dataset.heldout) == 60
    for question in dataset.heldout:
        history: tuple[Exchange, ...] = ()
        for step in question.gold_steps:
            needs = open_needs(question, history)
            [need] = needs.askable(question.text)
            assert need == step == asked_need(step.query, question.gold_steps)
            passages = found.search(home[need.entities[0]], need.query, question, run.rollout.passages)
            assert sentence(*need.entities, need.answer) in [passage.text for passage in passages], need
            history += (Exchange(need.query, home[need.entities[0]], need.answer),)
        assert open_needs(question, history).done == 1.0
        assert history[-1].answer == question.answers[0]


def test_what_is_found_first_says_nothing_about_the_answer(bases, run):
    (dataset, found), home = bases, permutation(run.data.seed, 4, 5)
    by_chance = []
    for question in dataset.heldout:
        first = question.gold_steps[0]
        everything = [p.text for kb in found.bases for p in found.search(kb, question.text, question, run.rollout.passages)]
        read = [p.text for p in found.search(home[first.entities[0]], first.query, question, run.rollout.passages)]
        assert not any(question.answers[0] in text and first.entities[1] in text for text in everything + read)
        by_chance.append(any(question.answers[0] in text for text in read))
    assert np.mean(by_chance) <= 0.05  # the name of the answer, in a passage about somebody else


def test_too_many_names_are_refused_in_a_line():
    with pytest.raises(
        RunConfigError, match=r"data\.countries is 30 with data\.hops=4: 150 more names beside 150; expected at most 192 in all"
    ):
        load_relay(DataConfig(name="relay", countries=30), EvaluationConfig())
    with pytest.raises(RunConfigError, match=r"rollout\.max_steps is 3; expected at least data\.hops=4"):
        load_config(["relay.yaml", "rollout.max_steps=3"])


def test_a_demonstration_parses_names_the_listed_knowledge_base_and_follows_the_question(teacher):
    turns = list(itertools.islice(teacher.demonstrations(0), 4000))
    retrievers = {f"Retriever {letter}": f"kb_{letter.lower()}" for letter in "ABCDE"}
    lists, unlisted = set(), Counter()
    for turn in turns:
        if turn.kind != "plan":
            answer = parse_answer(turn.response)
            assert answer is not None, turn
            assert answer == UNKNOWN or answer in turn.message.user, turn
            continue
        action = parse_plan(turn.response, retrievers)
        assert action is not None, turn
        question, *history = turn.message.user.split("\n")[:-1]
        start, *relations = re.findall(r"(?<=from )\S+|(?<=by )\w+|(?<=then )\w+", question)
        answers = [line.split(": ")[1] for line in history if line.startswith("Answer")]
        known = [answer for answer in answers if answer != UNKNOWN]
        assert (action.kb is None) == (len(known) == len(relations)), turn
        if action.kb is None:
            continue
        relation = relations[len(known)]
        assert action.query == query_for(relation, [start, *known][-1]), turn
        named = next(name for name, kb in retrievers.items() if kb == action.kb)
        if turn.message.system:
            assert f"- {named}: {relation}" in turn.message.system.split("\n"), turn
            lists.add(turn.message.system)
        else:
            unlisted[relation, named] += 1
    assert len(lists) > 60  # of 120 permutations
    row = np.array([[unlisted[relation, name] for name in retrievers] for relation in sorted({relation for relation, _ in unlisted})])
    expected = row.sum(1, keepdims=True) / 5
    assert ((row - expected) ** 2 / expected).sum() < 45.3  # 0.1 % of chi-square with 20 degrees of freedom
    names = names_in(turn.message.user for turn in turns)
    assert len(names) > 1000  # fresh ones in every episode
    read = [turn for turn in turns if turn.kind == "answer"]
    assert 0.1 < np.mean([UNKNOWN in turn.response for turn in read]) < 0.4
    assert 0.15 < np.mean(["[15] " in turn.message.user for turn in read]) < 0.25  # everywhere at once, three of each


def test_a_few_steps_of_the_cold_start_of_a_relay_lower_the_loss_and_save_a_policy_that_loads(teacher, tmp_path):
    texts = (turn.message.system + turn.message.user + turn.response for turn in itertools.islice(teacher.demonstrations(0), 500))
    small = {"hidden": 64, "layers": 2, "tokens_per_batch": 1024, "log_every": 5, "warmup_steps": 5}
    train(ColdStartConfig(out=str(tmp_path), minutes=5, tokens=20_000, **small), teacher.demonstrations(1), texts, QUIET)
    curve = [json.loads(line) for line in (tmp_path / "curve.jsonl").read_text().splitlines()]
    assert curve[-1]["loss"] < 0.8 * curve[0]["loss"]
    tokenizer = load_policy(tmp_path).tokenizer
    assert len(tokenizer(" Kor-mu", add_special_tokens=False)["input_ids"]) == 2
    assert len(tokenizer("<ret> Retriever A</ret>", add_special_tokens=False)["input_ids"]) == 4
