"""The cold start over a run's own data: what the teacher shows is what a run would find, and it is about training questions only."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter, defaultdict

import numpy as np
import pytest
import torch
from made_world import COUNTRIES, made_world
from rich.console import Console

from experiments.cold_start import main, taught
from experiments.config import load_config
from experiments.datasets import ensure_knowledge_bases, load_dataset
from experiments.worlds.cold_start_training import ColdStartConfig, train
from experiments.worlds.natural_teacher import quoting
from experiments.worlds.teacher_search import KnowledgeBases
from retrieval_actors.embedders.registry import build_embedder
from retrieval_actors.records import Passage, Query
from rollout.policies import load_policy
from rollout.records import UNKNOWN, GoldStep
from rollout.turn_parser import is_unknown, parse_answer, parse_plan

RETRIEVERS = {"Text Retriever": "text", "Text Image Retriever": "text_image", "Table Retriever": "table"}
QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def configuration(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("taught")
    made_world(folder / "data")
    run = {
        "data": {"name": "atlas_2wiki", "path": str(folder / "data"), "kb_folder": str(folder / "kbs")},
        "rollout": {"shuffle_passages": False},
    }
    (folder / "run.yaml").write_text(json.dumps(run))
    return str(folder / "run.yaml")


@pytest.fixture(scope="module")
def dataset(configuration):
    config = load_config([configuration])
    return load_dataset(config.data, config.evaluation, {})


@pytest.fixture(scope="module")
def turns(configuration):
    return list(itertools.islice(taught(ColdStartConfig(data=configuration), QUIET), 1200))


def history(turn) -> list[str]:
    return re.findall(r"^Answer \d: (.+)$", turn.message.user, re.M)


def test_it_shows_training_questions_only(turns, dataset):
    texts = {question.text for question in dataset.train}
    shown = {turn.message.user.split("\n")[0] for turn in turns if turn.kind != "answer"}
    assert shown == texts  # every one of them, and no other
    assert {turn.image for turn in turns} - {None} <= {question.image for question in dataset.train}
    unseen = [name for name in COUNTRIES if not any(name in f"{question.text} {question.gold_steps}" for question in dataset.train)]
    assert len(unseen) > 5  # of the validation and held-out countries
    for turn in turns:
        said = turn.response if turn.kind == "answer" else turn.message.user + turn.response
        assert not any(name in said for name in unseen), turn


def test_it_routes_blindly_asks_while_a_need_is_open_and_stops_when_all_are_met(turns, dataset):
    named, steps = Counter(), defaultdict(set)
    for question in dataset.train:
        steps[question.text].add(len(question.gold_steps))
    for turn in turns:
        if turn.kind != "plan":
            continue
        action = parse_plan(turn.response, RETRIEVERS)
        assert action is not None, turn
        met = sum(not is_unknown(answer) for answer in history(turn))
        assert (action.kb is None) == (met in steps[turn.message.user.split("\n")[0]]), turn
        if action.kb:
            begins = "picture" if "flag" in action.query else "other"
            named[begins, action.kb] += 1
    for begins in ("picture", "other"):
        row = [named[begins, kb] for kb in RETRIEVERS.values()]
        assert min(row) > 0.25 * sum(row), named  # a third each, whatever is asked for


def test_it_answers_with_what_it_read_and_says_unknown_where_it_found_nothing(turns):
    answers = [turn for turn in turns if turn.kind == "answer"]
    unknown = np.mean([parse_answer(turn.response) == UNKNOWN for turn in answers])
    assert 0.1 < unknown < 0.5
    for turn in answers:
        answer = parse_answer(turn.response)
        assert answer == UNKNOWN or turn.response.startswith("<think> I have") or answer in turn.message.user, turn
    finals = [turn for turn in turns if turn.kind == "final"]
    by_heart = [turn for turn in finals if not history(turn)]
    assert 0 < len(by_heart) < 0.3 * len(finals)
    assert all(parse_answer(turn.response) != UNKNOWN for turn in by_heart)
    assert any(parse_answer(turn.response) == UNKNOWN for turn in finals)


def test_the_quote_is_of_the_cell_or_sentence_that_was_asked_for():
    row = Passage("0", "countries | country Rwanda | currency Rwandan franc | demonym Rwandan", kb="table")
    need = GoldStep("What is the demonym of Rwanda?", "table", "Rwandan", ("Rwanda",))
    assert quoting(need, [row], 400) == "<think> demonym Rwandan</think><answer> Rwandan</answer>"
    assert parse_answer(quoting(need, [row], 40)) == UNKNOWN  # cut off before it
    elsewhere = Passage("1", row.text, kb="text")
    assert parse_answer(quoting(need, [elsewhere], 400)) == UNKNOWN  # as rewards judge it


@pytest.mark.parametrize("kb", RETRIEVERS.values())
def test_it_finds_what_a_run_finds(dataset, kb):
    folders = ensure_knowledge_bases(dataset.training_kbs)
    bases = KnowledgeBases(folders)
    source = next(source for source in dataset.training_kbs if source.name == kb)
    passages, embedder = list(source.passages()), build_embedder(bases.cards[kb].embedder)
    vectors = embedder.embed_passages(passages)
    asked = [(need.query, question) for question in dataset.train[::10] for need in question.gold_steps]
    bases.prepare(asked, 3)
    for query, question in asked:
        scores = vectors @ embedder.embed_queries([Query(query, question.image.data if question.image else None)])[0]
        found = bases.search(kb, query, question, 3)
        places = [next(i for i, passage in enumerate(passages) if passage.id == one.id) for one in found]
        np.testing.assert_allclose(scores[places], np.sort(scores)[::-1][:3], atol=1e-5)
        assert all(passage.kb == kb for passage in found)
    assert KnowledgeBases(folders).search(kb, query, question, 3) == found  # also without preparation


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_frozen_policy_learns_without_its_embeddings_and_the_curve_says_how_fast(turns, start_policy, tmp_path, dtype):
    settings = {
        "dtype": dtype,
        "start": start_policy,
        "muon": False,
        "lr": 1e-3,
        "freeze_embeddings": True,
        "warmup_steps": 1,
        "log_every": 1,
    }
    config = ColdStartConfig(out=str(tmp_path / "out"), minutes=5, tokens=10_000, tokens_per_batch=1000, **settings)
    learned = train(config, itertools.cycle(turns[:200]), (), QUIET)
    assert learned.model.dtype == torch.float32
    before = load_policy(start_policy)
    assert torch.equal(learned.model.get_input_embeddings().weight, before.model.get_input_embeddings().weight)
    moved = [not torch.equal(new, old) for new, old in zip(learned.model.parameters(), before.model.parameters(), strict=True)]
    assert sum(moved) > len(moved) / 2
    curve = [json.loads(line) for line in (tmp_path / "out/curve.jsonl").read_text().splitlines()]
    assert 10_000 <= curve[-1]["tokens"] < 11_000
    seconds = curve[-1]["tokens"] / curve[-1]["tokens_per_second"]
    assert abs(seconds - curve[-1]["seconds"]) <= 0.51  # they are rounded
    assert np.mean([row["loss"] for row in curve[-5:]]) < np.mean([row["loss"] for row in curve[:2]])


def test_what_cannot_be_taught_is_said_in_a_line(configuration, tmp_path, capsys):
    assert main([f"data={configuration}", f"out={tmp_path / 'out'}"]) != 0
    assert f"data={configuration} without start; expected the folder of a policy that can read" in " ".join(capsys.readouterr().out.split())
    questions = tmp_path / "questions.jsonl"
    questions.write_text("".join(json.dumps({"id": i, "text": f"What is {i}?", "answers": [str(i)]}) + "\n" for i in range(9)))
    own = {
        "data": {"name": "questions", "path": str(questions)},
        "retrieval": {"folders": {"text": "kbs/none"}},
        "evaluation": {"questions": 2, "validation_questions": 2},
    }
    (tmp_path / "own.yaml").write_text(json.dumps(own))
    with pytest.raises(ValueError, match=r"data\.name=questions has no training questions with gold steps"):
        taught(ColdStartConfig(data=str(tmp_path / "own.yaml")), QUIET)
