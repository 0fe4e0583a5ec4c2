"""What a learner is said to hold is what it holds: shapes on the meta device against a real engine, and real tensors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_turns import save_tiny_policy
from transformers import AutoModelForImageTextToText

from experiments.policy_shape import policy_shape
from learner.config import LearnerConfig
from learner.memory_plan import Counted, counted, rank_memory
from learner.micro_batches import Response, Row
from learner.saved_activations import SavedBytes, kept_by, saved_bytes
from learner.scorer import Scorer, inputs_of, packed
from rollout.policy import Policy

NOTHING = SavedBytes(0, 0, 0, 0, 0, 0, 0)
MEASURE = Path(__file__).with_name("held_by_an_engine.py")
ENGINES = [
    {"zero_stage": 0},
    {"zero_stage": 1},
    {"zero_stage": 1, "dtype": "bfloat16"},
    {"zero_stage": 2, "dtype": "bfloat16"},
    {"zero_stage": 2, "dtype": "bfloat16", "freeze_vision": True},
    {"zero_stage": 3, "dtype": "bfloat16"},
    {"zero_stage": 1, "lora_rank": 8},
]


@pytest.fixture(scope="module")
def measured() -> dict[str, dict[str, int]]:
    """What an engine of each kind holds, in a process of its own: DeepSpeed has to find its environment set."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, MEASURE, save_tiny_policy(), json.dumps(ENGINES)], capture_output=True, text=True, env=environment, timeout=240
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("how", ENGINES, ids=str)
def test_parameters_gradients_and_optimizer_are_those_of_a_real_engine(how, measured):
    config = LearnerConfig(**how)
    expected = rank_memory(counted(policy_shape(save_tiny_policy(), config).model), config, NOTHING)
    found = measured[json.dumps(how)]
    assert found["parameters"] == expected.parameters
    # ZeRO pads partitions to a few numbers.
    assert found["gradients"] == pytest.approx(expected.gradients, rel=0.02, abs=256)
    assert found["optimizer"] == pytest.approx(expected.optimizer, rel=0.02, abs=1024)


def test_partitions_shrink_with_the_ranks():
    numbers = Counted(parameters=1000, trained=600, vision=100)
    two = rank_memory(numbers, LearnerConfig(zero_stage=2, dtype="bfloat16", num_learners=4), NOTHING)
    assert (two.parameters, two.gradients, two.optimizer) == (2000, 300, 1800)
    three = rank_memory(numbers, LearnerConfig(zero_stage=3, dtype="bfloat16", num_learners=4), NOTHING)
    assert (three.parameters, three.gradients, three.optimizer) == (500, 300, 1800)


def test_offload_moves_the_optimizer_to_main_memory_and_with_zero_3_the_weights():
    numbers = Counted(parameters=1000, trained=1000, vision=100)
    on_gpu, moved, all_moved = (
        rank_memory(numbers, LearnerConfig(zero_stage=3, dtype="bfloat16", offload=offload), NOTHING)
        for offload in ("none", "optimizer", "parameters")
    )
    assert (moved.optimizer, moved.gradients, moved.parameters) == (0, 0, on_gpu.parameters)
    assert all_moved.parameters == 0
    assert on_gpu.host < moved.host < all_moved.host


def test_a_reference_costs_a_policy_except_with_adapters_and_shares_a_frozen_tower():
    numbers = Counted(parameters=1000, trained=1000, vision=100)
    assert rank_memory(numbers, LearnerConfig(kl_weight=0.1), NOTHING).reference == 4000
    assert rank_memory(numbers, LearnerConfig(kl_weight=0.1, freeze_vision=True), NOTHING).reference == 3600
    assert rank_memory(numbers, LearnerConfig(kl_weight=0.1, lora_rank=4), NOTHING).reference == 0
    assert rank_memory(numbers, LearnerConfig(kl_weight=0.1, zero_stage=3, num_learners=2), NOTHING).reference == 2000


def rows(policy: Policy) -> list[Row]:
    draw = np.random.default_rng(0)
    ids = lambda n: draw.integers(20, 300, n).astype(np.int32)  # noqa: E731
    return [Row(ids(24), None, tuple(Response(ids(16), np.zeros(16, np.float32), 1.0, 1.0) for _ in range(4))) for _ in range(4)]


def test_activations_are_what_autograd_keeps_of_a_real_forward_pass():
    """The meta device counts fused attention; the CPU's kernel keeps the same and, for each row, a mask: hence the tolerance."""
    policy = Policy.load(save_tiny_policy())
    policy.model.model.visual.requires_grad_(False)
    batch = packed(rows(policy), policy)
    scorer = Scorer(policy)
    inputs = inputs_of(batch, policy, torch.device("cpu"), "sdpa")
    real = kept_by(policy.model, lambda: scorer(**inputs))
    shape = policy_shape(save_tiny_policy(), LearnerConfig(freeze_vision=True))
    saved = saved_bytes(shape.model, len(batch.input_ids), len(batch.targets))
    of_the_head = 4 * len(batch.targets) * (policy.model.lm_head.out_features + 2 * shape.config.get_text_config().hidden_size)
    assert saved.layers * saved.layer + of_the_head == pytest.approx(real, rel=0.15)


def test_checkpointing_keeps_the_hidden_states_and_one_layer():
    plain = saved_bytes(policy_shape(save_tiny_policy(), LearnerConfig()).model, 512, 64, 16)
    assert plain.boundary == 512 * 64 * 4
    assert plain.kept(True) == plain.layers * plain.boundary + plain.vision_blocks * plain.vision_boundary + max(plain.layer, plain.head)
    checkpointed = saved_bytes(policy_shape(save_tiny_policy(), LearnerConfig(gradient_checkpointing=True)).model, 512, 64, 16)
    assert checkpointed.layer == plain.boundary  # so is it with the library's own
    assert plain.kept(False) > plain.kept(True)


def test_a_frozen_tower_keeps_nothing():
    assert saved_bytes(policy_shape(save_tiny_policy(), LearnerConfig(freeze_vision=True)).model, 64, 64, 16).vision_blocks == 0


def test_shapes_on_the_meta_device_count_as_many_parameters_as_the_real_policy_has():
    shape = policy_shape(save_tiny_policy(), LearnerConfig())
    real = AutoModelForImageTextToText.from_pretrained(save_tiny_policy())
    assert counted(shape.model).parameters == sum(parameter.numel() for parameter in real.parameters())
    assert {parameter.device.type for parameter in shape.model.parameters()} == {"meta"}


@pytest.mark.parametrize(
    ("name", "parameters"), [("Qwen/Qwen2.5-VL-3B-Instruct", 3_754_622_976), ("Qwen/Qwen2.5-VL-7B-Instruct", 8_292_166_656)]
)
def test_the_published_models_have_their_published_number_of_parameters(name, parameters):
    assert counted(policy_shape(name, LearnerConfig()).model).parameters == parameters
