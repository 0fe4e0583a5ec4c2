"""What `bench learner` measures is the same update, computed in two ways."""

import math

import numpy as np
import pytest
import torch
from local_rows import rows_of

from experiments.benchmarks.fresh_process import forget_peak, in_fresh_process, peak, resident
from experiments.benchmarks.learner import GROUP, learner_rows, one_sample_rows, padded_batches, shipped_policy, update_of
from experiments.benchmarks.learner_turns import default_turns, turns_of_lengths
from rollout.engines.transformers_engine import TransformersEngine
from rollout.policies import Policy


@pytest.fixture(scope="module")
def policy() -> Policy:
    return shipped_policy()


def gradient(policy: Policy, variant: str, rows) -> torch.Tensor:
    update_of(variant, policy, rows)()
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in policy.model.parameters()])


def test_shared_prefixes_and_padded_rows_give_one_gradient_on_turns_of_the_default_world(policy):
    turns = default_turns(TransformersEngine(policy), 8, 2)
    assert any(turn.image is not None for turn in turns)
    rows = rows_of(turns, [turn.reward.total - 0.5 for turn in turns], [1.0] * len(turns), 10_000)
    shared, padded = (gradient(policy, variant, rows) for variant in ("shared", "padded"))
    assert (shared - padded).norm() < 1e-4 * padded.norm()


def test_turns_of_lengths_have_these_lengths_and_as_many_siblings(policy):
    turns = turns_of_lengths(policy, 2, GROUP, prompt=50, response=7)
    assert {(len(turn.prompt_ids), len(turn.turn.response_ids)) for turn in turns} == {(50, 7)}
    assert len({turn.state_key for turn in turns}) == 2
    assert len(turns) == 2 * GROUP


def test_padded_batches_hold_every_sample_once_in_order_and_within_the_bound(policy):
    turns = turns_of_lengths(policy, 3, 4, prompt=9, response=3) + turns_of_lengths(policy, 2, 3, prompt=20, response=6, seed=1)
    rows = one_sample_rows(rows_of(turns, [0.0] * len(turns), [1.0] * len(turns), 10_000))
    batches = padded_batches(rows, 60)
    assert [row for batch in batches for row in batch] == rows
    longest = [max(len(row.prompt_ids) + len(row.responses[0].ids) for row in batch) for batch in batches]
    assert all(length * len(batch) <= 60 for length, batch in zip(longest, batches, strict=True))


def growth_by_64_mib():
    before = resident()
    forget_peak()
    np.ones(8 * 2**20)
    return peak() - before


@pytest.mark.slow
def test_the_peak_is_that_of_memory_that_is_free_again():
    assert 50 * 2**20 < in_fresh_process(growth_by_64_mib) < 100 * 2**20


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_figure_of_the_benchmark_is_a_number():
    rows = list(learner_rows(quick=True))
    assert rows
    assert all(math.isfinite(row.value) and row.value >= 0 for row in rows)
