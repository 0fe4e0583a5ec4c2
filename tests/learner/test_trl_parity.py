"""The same tensors through TRL's GRPO trainer and through our objective: where both have a setting, loss, gradient and advantages are equal.

The trainer is TRL's own; only what would generate and run a model is replaced by the tensors of the test.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from tiny_turns import TEXTS

from experiments.worlds.tiny_policy import train_tokenizer
from learner.config import LearnerConfig
from learner.objective.advantages import component_advantages, group_advantages
from learner.objective.batch_plan import token_weights
from learner.objective.losses import Tokens, loss_of
from rewards.scored_summary import ScoredSummary
from rollout.records import ScoredTurn, Turn, TurnReward

trl = pytest.importorskip("trl", reason="trl is not installed; it comes with the dev dependencies")

LENGTHS = [5, 2, 7, 1, 4, 6]
LONGEST = 8
GROUP = 3
CLIP = {"clip_low": 0.2, "clip_high": 0.28}
EXACT = {"atol": 1e-6, "rtol": 1e-6}


@dataclass
class Batch:
    """What TRL's `_compute_loss` is given: (turns, tokens) float64, right-padded."""

    logprobs: torch.Tensor
    old: torch.Tensor
    reference: torch.Tensor
    sampler: torch.Tensor
    advantages: torch.Tensor
    entropies: torch.Tensor
    mask: torch.Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.mask = (torch.arange(max(LENGTHS))[None] < torch.tensor(LENGTHS)[:, None]).long()


@pytest.fixture
def batch() -> Batch:
    generator = torch.Generator().manual_seed(3)

    def noise(scale: float) -> torch.Tensor:
        return scale * torch.randn(len(LENGTHS), max(LENGTHS), generator=generator, dtype=torch.float64)

    old = -1.5 + noise(0.5)
    logprobs = (old + noise(0.6)).requires_grad_()
    advantages = torch.randn(len(LENGTHS), generator=generator, dtype=torch.float64)
    return Batch(logprobs, old, old + noise(0.4), old + noise(0.3), advantages, noise(0.1).abs())


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
    from datasets import Dataset
    from transformers import Qwen2Config, Qwen2ForCausalLM

    tokenizer = train_tokenizer(TEXTS * 3, vocabulary=320)
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=2, bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        )
    )  # fmt: skip
    arguments = trl.GRPOConfig(
        output_dir=str(tmp_path_factory.mktemp("trl")), report_to="none", use_cpu=True, bf16=False, num_generations=GROUP,
        per_device_train_batch_size=len(LENGTHS), max_completion_length=LONGEST, epsilon=CLIP["clip_low"], epsilon_high=CLIP["clip_high"],
    )  # fmt: skip

    class GivenTensors(trl.GRPOTrainer):
        given: Batch
        rewards: torch.Tensor

        def _get_per_token_logps_and_entropies(self, *arguments, **settings):
            return self.given.logprobs, self.given.entropies, None

        def _generate(self, prompts):
            ids = [[5, 6]] * len(prompts)
            return ids, ids, None, ["text"] * len(prompts), None, {}, None, None

        def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
            return self.rewards

    made = GivenTensors(
        model=model,
        reward_funcs=[lambda completions, **_: [0.0] * len(completions)] * 2,
        args=arguments,
        train_dataset=Dataset.from_list([{"prompt": "flag"}] * 4),
        processing_class=tokenizer,
    )
    made.current_gradient_accumulation_steps = 1
    made.model.train()
    return made


def by_trl(trainer, batch: Batch, monkeypatch, **settings) -> tuple[float, torch.Tensor]:
    """Loss and gradient; `settings` are attributes of the trainer, or of its arguments."""
    for name, value in settings.items():
        monkeypatch.setattr(trainer.args if hasattr(trainer.args, name) and not hasattr(trainer, name) else trainer, name, value)
    trainer.given, batch.logprobs.grad = batch, None
    ids = torch.zeros_like(batch.mask)
    loss = trainer._compute_loss(
        trainer.model,
        {
            "prompt_ids": ids[:, :1], "prompt_mask": ids[:, :1] + 1, "completion_ids": ids, "completion_mask": batch.mask,
            "advantages": batch.advantages, "old_per_token_logps": batch.old, "ref_per_token_logps": batch.reference,
            "num_items_in_batch": batch.mask.sum(), "importance_sampling_ratio": (batch.old - batch.sampler).exp().clamp(max=2.0),
        },
    )  # fmt: skip
    loss.backward()
    return loss.item(), batch.logprobs.grad.clone()


def by_us(batch: Batch, config: LearnerConfig) -> tuple[float, torch.Tensor]:
    """The same tokens in our own layout: flat, weighed by turn."""
    ids = [np.zeros(length, np.int32) for length in LENGTHS]
    turns = [
        ScoredTurn("s", ids[0], None, Turn("plan", i, i.astype(np.float32), "stop", 0, ""), TurnReward(0.0), str(n), 0.0, "q")
        for n, i in enumerate(ids)
    ]
    weights, shares = token_weights(ScoredSummary.of(turns), np.arange(len(turns)), config.aggregation, config.constant_tokens)
    mask, batch.logprobs.grad = batch.mask.bool(), None
    turn = torch.arange(len(LENGTHS))[:, None].expand_as(mask)[mask]
    loss, _ = loss_of(
        Tokens(
            logprobs=batch.logprobs[mask],
            entropy=batch.entropies[mask],
            sampler_logprobs=(batch.old if config.sampler_correction == "none" else batch.sampler)[mask],
            advantages=batch.advantages[turn],
            weights=torch.from_numpy(weights)[turn],
            turn=turn,
            learner_logprobs=None if config.sampler_correction == "none" else batch.old[mask],
            reference_logprobs=batch.reference[mask] if config.kl_weight else None,
        ),
        config,
        float(shares.sum()),
    )
    loss.backward()
    return loss.item(), batch.logprobs.grad.clone()


SETTINGS = {
    "grpo: turns count equally": ({"loss_type": "grpo"}, {"aggregation": "turn_mean"}),
    "bnpo: tokens count equally": ({"loss_type": "bnpo"}, {"aggregation": "token_mean"}),
    "dapo: tokens count equally, over all ranks": ({"loss_type": "dapo"}, {"aggregation": "token_mean"}),
    "dr_grpo: a constant": ({"loss_type": "dr_grpo"}, {"aggregation": "constant", "constant_tokens": LONGEST}),
    "gspo: one ratio for a turn": (
        {"loss_type": "grpo", "importance_sampling_level": "sequence"}, {"aggregation": "turn_mean", "ratio": "turn"},
    ),
    "gspo, tokens count equally": (
        {"loss_type": "dapo", "importance_sampling_level": "sequence"}, {"aggregation": "token_mean", "ratio": "turn"},
    ),
    "cispo": ({"loss_type": "cispo", "epsilon_high": 1.5}, {"surrogate": "cispo", "clip_low": 1.0, "clip_high": 0.5}),
    "clip without clip-higher": ({"loss_type": "dapo", "epsilon_high": 0.2}, {"clip_high": 0.2}),
    "kl k3": (
        {"loss_type": "dapo", "beta": 0.3, "use_bias_correction_kl": False}, {"kl_weight": 0.3, "kl_estimator": "k3"},
    ),
    "kl k3, turns count equally": (
        {"loss_type": "grpo", "beta": 0.3, "use_bias_correction_kl": False}, {"kl_weight": 0.3, "aggregation": "turn_mean"},
    ),
    "entropy bonus": ({"loss_type": "dapo", "_entropy_bonus_enabled": True, "entropy_coef": 0.2}, {"entropy_weight": 0.2}),
    "truncated importance sampling": (
        {"loss_type": "dapo", "use_vllm": True, "vllm_importance_sampling_correction": True}, {"sampler_correction": "truncate"},
    ),
}  # fmt: skip


@pytest.mark.parametrize(("theirs", "ours"), SETTINGS.values(), ids=SETTINGS.keys())
def test_loss_and_gradient_are_those_of_trl(trainer, batch, monkeypatch, theirs, ours):
    expected, expected_gradient = by_trl(trainer, batch, monkeypatch, **theirs)
    found, gradient = by_us(batch, LearnerConfig(**{**CLIP, **ours}))
    assert found == pytest.approx(expected, abs=1e-6)
    torch.testing.assert_close(gradient, expected_gradient, **EXACT)
    assert gradient.abs().max() > 1e-3


REWARDS = torch.tensor([[0.0, 1.0], [1.0, 0.5], [0.5, 0.5], [1.0, 0.0], [1.0, 1.0], [0.2, 0.4]], dtype=torch.float64)
KEYS = np.repeat(["a", "b"], GROUP)


def advantages_by_trl(trainer, monkeypatch, **settings) -> np.ndarray:
    for name, value in settings.items():
        monkeypatch.setattr(trainer, name, value)
    trainer.rewards = REWARDS
    return trainer._generate_and_score_completions([{"prompt": "flag"}] * len(REWARDS))["advantages"].numpy()


def rescaled(advantages: np.ndarray, std: np.ndarray) -> np.ndarray:
    """From the population standard deviation + 1e-6 (ours) to TRL's sample standard deviation + 1e-4. std: the sample standard deviation."""
    sizes = len(REWARDS) if std.ndim == 0 else GROUP
    return advantages * (std * np.sqrt((sizes - 1) / sizes) + 1e-6) / (std + 1e-4)


@pytest.mark.parametrize(("theirs", "ours"), [("none", "none"), ("group", "std"), ("batch", "batch_std")])
def test_advantages_are_those_of_trl(trainer, monkeypatch, theirs, ours):
    total = REWARDS.sum(1).numpy()
    expected = advantages_by_trl(trainer, monkeypatch, scale_rewards=theirs, multi_objective_aggregation="sum_then_normalize")
    found = group_advantages(total, KEYS, ours).advantages.astype(np.float64)
    if ours == "std":
        found = rescaled(found, np.repeat([total[key == KEYS].std(ddof=1) for key in "ab"], GROUP))
    elif ours == "batch_std":
        found = rescaled(found, total.std(ddof=1))
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_advantages_by_component_are_those_of_trl_up_to_its_larger_epsilon(trainer, monkeypatch):
    """TRL adds 1e-4 to each standard deviation, which is not undone by one factor: hence the wider tolerance."""
    expected = advantages_by_trl(trainer, monkeypatch, multi_objective_aggregation="normalize_then_sum")
    parts = [{"x": x, "y": y} for x, y in REWARDS.tolist()]
    found = component_advantages(parts, KEYS).advantages * np.sqrt((len(REWARDS) - 1) / len(REWARDS))
    np.testing.assert_allclose(found, expected, atol=1e-3)
