"""What `bench learner` measures is the same update, computed in two ways; what it cannot measure here it says."""

import math

import numpy as np
import pytest
import torch
from local_rows import rows_of

from experiments.benchmarks.fresh_process import forget_peak, in_fresh_process, peak, resident
from experiments.benchmarks.learner import GROUP, learner_rows, one_sample_rows, padded_batches, shipped_policy, update_of
from experiments.benchmarks.learner_gpu import gpu_rows, measured, random_policy
from experiments.benchmarks.learner_turns import default_turns, turns_of_lengths
from learner.objective.token_logprobs import Scorer
from rollout.policies import Policy


@pytest.fixture(scope="module")
def policy() -> Policy:
    return shipped_policy()


def gradient(policy: Policy, variant: str, rows) -> torch.Tensor:
    update_of(variant, policy, rows)()
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in policy.model.parameters()])


def test_shared_prefixes_and_padded_rows_give_one_gradient_on_turns_of_the_default_world(policy):
    turns = default_turns(policy, 8, 2)
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


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_its_figures_are_named_and_neither_hold_nor_miss():
    rows = list(gpu_rows(quick=True))
    assert rows
    assert all(row.holds is None and math.isnan(row.value) and "(no GPU)" in row.name for row in rows)


@pytest.mark.parametrize(("shared", "samples"), [(True, 16), (False, 3)])
def test_what_is_measured_on_a_gpu_runs_on_a_cpu_at_a_small_shape(shared, samples):
    text = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 500,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 1, 1]},
    }  # fmt: skip
    vision = {"depth": 1, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 32}
    policy = random_policy(text, vision, torch.float32, "cpu")
    seconds, flop, read, found = measured(Scorer(policy), policy, 1700, shared, 1)
    assert seconds > 0
    assert found == samples
    assert read == (2 * (512 + 8 * 31) if shared else 3 * (512 + 31))
    inside = sum(p.numel() for p in policy.model.model.language_model.layers.parameters())
    assert flop == 6 * (inside * read + 500 * 32 * samples * 32)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_figure_of_the_benchmark_is_a_number():
    rows = [row for row in learner_rows(quick=True) if "(no GPU)" not in row.name]
    assert rows
    assert all(math.isfinite(row.value) and row.value >= 0 for row in rows)
