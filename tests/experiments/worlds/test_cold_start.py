from __future__ import annotations

import itertools
import json
from collections import Counter

import numpy as np
import pytest
import torch
from rich.console import Console

from experiments.worlds.atlas import KNOWLEDGE_BASES
from experiments.worlds.cold_start_training import ColdStartConfig, encode, fresh_policy, response_logits, train
from experiments.worlds.teacher import demonstrations, teacher_texts
from rollout.policies import load_policy
from rollout.records import UNKNOWN
from rollout.turn_parser import parse_answer, parse_plan

RETRIEVERS = {name: kb for kb, (name, _) in KNOWLEDGE_BASES.items()}


@pytest.fixture(scope="module")
def turns():
    return list(itertools.islice(demonstrations(2), 3000))


def test_every_turn_of_the_teacher_is_well_formed(turns):
    for turn in turns:
        parsed = parse_plan(turn.response, RETRIEVERS) if turn.kind == "plan" else parse_answer(turn.response)
        assert parsed is not None, turn


def test_the_teacher_routes_blindly(turns):
    """Chi-square of the named knowledge base against the relation that is asked for: no better than chance."""
    table = Counter()
    for turn in turns:
        action = parse_plan(turn.response, RETRIEVERS) if turn.kind == "plan" else None
        if action and action.kb:
            asked = "text_image" if "flag with" in action.query else "table" if " was the " in action.query else "text"
            table[asked, action.kb] += 1
    statistic = 0.0
    for asked in RETRIEVERS.values():
        row = [table[asked, kb] for kb in RETRIEVERS.values()]
        statistic += sum((count - sum(row) / 3) ** 2 / (sum(row) / 3) for count in row)
    assert sum(table.values()) > 500
    assert statistic < 22.5  # 0.1 % of the chi-square distribution with 6 degrees of freedom


def test_the_teacher_says_unknown_when_the_passages_do_not_hold_the_answer(turns):
    readings = [turn for turn in turns if turn.kind == "answer"]
    share = np.mean([parse_answer(turn.response) == UNKNOWN for turn in readings])
    assert 0.15 < share < 0.5
    for turn in readings:
        answer = parse_answer(turn.response)
        assert answer == UNKNOWN or answer in turn.message.user


def test_induction_weights_copy_before_any_training():
    policy = fresh_policy(ColdStartConfig(vocabulary=700), teacher_texts(0))
    names = [i for i in range(300, len(policy.tokenizer)) if i not in policy.tokenizer.all_special_ids]
    rng = np.random.default_rng(0)
    segment = torch.from_numpy(rng.permutation(names)[:40])
    with torch.no_grad():
        logits = policy.model(input_ids=torch.cat([segment, segment])[None]).logits[0]
    copied = (logits[40:-1].argmax(-1) == segment[1:]).float().mean()
    assert copied > 0.6


def test_logits_of_a_padded_batch_equal_those_of_each_row_alone():
    policy = fresh_policy(ColdStartConfig(hidden=64, layers=2, vocabulary=700), teacher_texts(0))
    rows = [encode(policy, turn) for turn in itertools.islice(demonstrations(4), 0, 240, 8)]
    assert any(row.image for row in rows)
    with torch.no_grad():
        together, targets, owner = response_logits(policy, rows)
        for i, row in enumerate(rows):
            alone, target, _ = response_logits(policy, [row])
            assert torch.equal(target, targets[owner == i])
            assert torch.equal(target, torch.from_numpy(row.response.astype(np.int64)))
            torch.testing.assert_close(alone, together[owner == i], atol=2e-4, rtol=1e-3)


@pytest.mark.slow
def test_a_minute_fraction_of_cold_start_lowers_the_loss_and_saves_a_policy(tmp_path):
    config = ColdStartConfig(out=str(tmp_path), minutes=0.3, hidden=64, layers=2, tokens_per_batch=1024, log_every=10)
    train(config, demonstrations(1), teacher_texts(0), Console(quiet=True))
    curve = [json.loads(line) for line in (tmp_path / "curve.jsonl").read_text().splitlines()]
    assert curve[-1]["loss"] < 0.8 * curve[0]["loss"]
    assert load_policy(tmp_path).encode is not None
