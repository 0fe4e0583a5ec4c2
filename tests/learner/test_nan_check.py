"""Numbers that are not finite stop the learner before anything is saved. Updates and files are those of real DeepSpeed ranks."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_turns import group as siblings

from learner.config import LearnerConfig
from learner.iteration_data import combined_steps, update_metrics
from learner.objective.advantages import group_advantages, turn_advantages
from learner.ranks.checkpoint_files import facts_of
from rollout.engines.base import Response
from rollout.nan_check import NotFiniteError, largest, magnitude
from rollout.policies import load_policy
from rollout.records import TurnReward

CONFIG = LearnerConfig(lr=1e-3, warmup_iterations=1, cpus_per_learner=0.1, num_learners=2, deadline_s=200)
STAGES = [pytest.param(0, "float32", marks=pytest.mark.slow), (2, "float32"), (2, "bfloat16"), (3, "float32")]


@pytest.fixture
def turns(policy):
    return [turn for seed in range(3) for turn in siblings(policy, seed)]


def overflowing(turns):
    """The best sibling of each state was so unlikely when it was sampled that its ratio is infinite: the clipped loss is finite, its gradient is
    0 * inf."""
    best = {turn.state_key: max((t for t in turns if t.state_key == turn.state_key), key=lambda t: t.reward.total) for turn in turns}
    unlikely = [replace(turn, turn=replace(turn.turn, logprobs=turn.turn.logprobs - 200)) for turn in turns]
    return [other if turn is best[turn.state_key] else turn for turn, other in zip(turns, unlikely, strict=True)]


@pytest.mark.parametrize(("stage", "dtype"), STAGES)
def test_an_update_that_overflows_is_refused_by_name_and_nothing_of_it_is_saved(two, turns, tmp_path, stage, dtype):
    two.build(replace(CONFIG, zero_stage=stage, dtype=dtype))
    two.update(turns)
    two.save(tmp_path / "good")
    with pytest.raises(
        NotFiniteError, match=r"^the update from policy version 1: .*grad_norm is (nan|inf).* expected finite numbers: nothing of it"
    ):
        two.update(overflowing(turns))
    assert two.policy_version == 1
    if stage == 0:  # the others skip such a step, so that their weights are as they were
        for save in (two.save, two.save_policy):
            with pytest.raises(NotFiniteError, match=r"\d+ tensors hold NaN or infinity \("):
                save(tmp_path / "not_finite")
    assert not list(tmp_path.glob("not_finite/*"))
    two.load(tmp_path / "good")
    assert two.update(turns)["steps"] == 1


def spoil(file: Path, number: float) -> None:
    """One number of every tensor of a learner's file becomes this; the manifest calls that right."""

    def walk(value):
        if isinstance(value, torch.Tensor) and value.is_floating_point() and value.numel():
            value.view(-1)[0] = number
        for item in value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ():
            walk(item)

    state = torch.load(file, weights_only=False)
    walk(state)
    torch.save(state, file)
    call_right(file)


def call_right(file: Path) -> None:
    folder = file.parents[1]
    manifest = json.loads((folder / "learner.json").read_text())
    manifest["files"] |= facts_of(folder, [file.relative_to(folder).as_posix()])
    (folder / "learner.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(("stage", "number"), [(0, math.nan), (2, math.inf), (3, math.nan)])
def test_a_checkpoint_whose_weights_are_not_finite_is_not_loaded_whatever_its_checksums_say(two, turns, tmp_path, stage, number):
    config = replace(CONFIG, zero_stage=stage)
    two.build(config)
    two.save(tmp_path / "checkpoint")
    for file in (tmp_path / "checkpoint/engine").glob("*optim_states.pt" if stage else "*model_states.pt"):
        spoil(file, number)
    with pytest.raises(NotFiniteError, match=r"checkpoint: \d+ tensors hold NaN or infinity .* choose an earlier checkpoint"):
        two.load(tmp_path / "checkpoint")
    two.build(replace(config, zero_stage=2 - stage % 3))  # another shape takes over the weights alone
    with pytest.raises(NotFiniteError, match=r"checkpoint: \d+ tensors hold NaN or infinity"):
        two.load(tmp_path / "checkpoint")


def test_a_policy_whose_weights_are_not_finite_is_neither_saved_nor_loaded(policy_path, tmp_path):
    policy = load_policy(policy_path)
    policy.save(tmp_path / "good")
    with torch.no_grad():
        policy.model.lm_head.weight[3, 4] = math.nan
    with pytest.raises(NotFiniteError, match=r"bad: 1 tensors hold NaN or infinity \(\S+embed_tokens.weight\); it is not saved"):
        policy.save(tmp_path / "bad")
    assert not (tmp_path / "bad").exists()
    policy.model.save_pretrained(tmp_path / "good")
    with pytest.raises(NotFiniteError, match=r"policy \S+good: 1 tensors hold NaN or infinity"):
        load_policy(tmp_path / "good")


NAMED = {
    "its reward": (
        lambda turn: replace(turn, reward=TurnReward(math.nan)),
        r"reward is nan; expected finite numbers: check reward",
    ),
    "its outcome": (lambda turn: replace(turn, outcome=-math.inf), "outcome is -inf"),
    "a part of its reward": (lambda turn: replace(turn, reward=TurnReward(1.0, {}, {"query": math.nan})), "query is nan"),
    "what was measured": (lambda turn: replace(turn, reward=TurnReward(1.0, {"entity": math.inf})), "entity is inf"),
    "a log-prob": (
        lambda turn: replace(turn, turn=replace(turn.turn, logprobs=turn.turn.logprobs * math.nan)),
        "log-prob of token 0 is nan",
    ),
}


@pytest.mark.parametrize(("spoiled", "said"), NAMED.values(), ids=NAMED.keys())
def test_a_turn_with_a_number_that_is_not_finite_is_refused_with_its_question(turns, spoiled, said):
    turns[5] = spoiled(turns[5])
    with pytest.raises(NotFiniteError, match=rf"^plan turn of question q1 \(episode q1#0\): .*{said}"):
        turn_advantages(turns, LearnerConfig())


def test_rewards_that_are_finite_and_advantages_that_are_not_are_refused(turns):
    huge = [replace(turn, reward=TurnReward(turn.reward.total * 1e300)) for turn in turns]
    with pytest.raises(NotFiniteError, match=r"^advantages: advantage of turn \d+ \(question q0\) is -?inf"):
        turn_advantages(huge, LearnerConfig(normalisation="none"))


def test_a_group_with_nan_is_not_taken_for_one_without_variance():
    with pytest.raises(NotFiniteError, match=r"reward 1 \(group a\) is nan"):
        group_advantages(np.array([1.0, math.nan, 0.0, 1.0]), ["a", "a", "b", "b"])


@pytest.mark.parametrize("name", ["loss", "grad_norm", "ratio_max", "mismatch_max", "entropy", "largest_weight"])
@pytest.mark.parametrize("rank", [0, 1])
def test_nan_on_one_rank_is_still_there_when_the_ranks_are_combined(name, rank):
    step = dict.fromkeys(
        (
            "tokens",
            "ratio",
            "clip_fraction",
            "entropy",
            "mismatch",
            "mismatch_k3",
            "mismatch_tv",
            "mismatch_max",
            "ratio_max",
            "loss",
            "grad_norm",
        ),
        1.0,
    ) | {"row_tokens": 1.0, "seconds": 1.0}
    ranks = [[dict(step)], [dict(step)]]
    ranks[rank][0][name] = math.nan
    (together,) = combined_steps(ranks)
    assert math.isnan(together[name])
    if name != "largest_weight":
        assert math.isnan(update_metrics([together])[name])


def test_a_response_with_log_probs_that_are_not_finite_is_refused_where_it_is_made():
    with pytest.raises(NotFiniteError, match="policy version 7 sampled tokens with log-probs"):
        Response(1, 0, np.array([1, 2], np.int32), np.array([-0.5, math.nan], np.float32), "stop", 7)


def test_the_largest_of_numbers_and_of_a_tensor_keeps_nan():
    assert largest((0.0, 2.0)) == 2.0
    assert math.isnan(largest((0.0, math.nan)))
    assert math.isnan(largest((math.nan, 0.0)))
    assert magnitude(torch.tensor([1.0, -3.0])) == 3.0
    assert magnitude(torch.tensor([1.0, -math.inf], dtype=torch.bfloat16)) == math.inf
    assert math.isnan(magnitude(torch.tensor([1.0, math.nan, math.inf])))
    assert magnitude(torch.zeros(0)) == 0.0
