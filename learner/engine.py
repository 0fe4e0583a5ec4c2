"""The DeepSpeed engine of one rank, as the configuration says: what is trained, what is partitioned, what is kept where.

Nothing is compiled: the optimizer is torch's own AdamW, also where DeepSpeed would build one of its own for a CPU.
"""

from __future__ import annotations

from typing import Any

import torch

from learner.adapters import add_adapters
from learner.config import LearnerConfig
from learner.scorer import Scorer
from rollout.policy import Policy

SMALLEST_PARTITIONED = 10_000
"""ZeRO-3 keeps tensors with fewer elements whole on every rank: gathering them costs more than storing them."""


def build_engine(policy: Policy, config: LearnerConfig) -> Any:
    """The policy's scorer in a DeepSpeed engine with a fresh optimizer over what is trained."""
    import deepspeed

    prepare(policy, config)
    scorer = Scorer(policy, entropy_gradient=config.entropy_weight != 0)
    trained = [parameter for parameter in scorer.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=config.lr, betas=(config.betas[0], config.betas[1]), weight_decay=config.weight_decay)
    return deepspeed.initialize(model=scorer, optimizer=optimizer, config=engine_settings(config), dist_init_required=False)[0]


def build_reference(path: str, policy: Policy, config: LearnerConfig) -> Any:
    """The policy that training begins with, without gradients; not needed with LoRA, where it is the policy with its adapters off.

    With ZeRO-3 it is partitioned like the policy: one copy for all ranks. Else every rank has a copy, which shares a frozen vision tower.
    """
    import deepspeed

    reference = Policy.load(path, dtype=config.dtype, device=str(policy.device))
    reference.model.requires_grad_(False)
    if config.zero_stage == 3:
        return deepspeed.initialize(model=Scorer(reference), config=engine_settings(config), dist_init_required=False)[0]
    if config.freeze_vision:
        reference.model.model.visual = policy.model.model.visual
    return Scorer(reference)


def prepare(policy: Policy, config: LearnerConfig) -> None:
    """Freeze, adapt, and set up checkpointing of activations, in place."""
    model = policy.model
    if config.lora_rank:
        model.requires_grad_(False)
        add_adapters(model.model.language_model, config)
    if config.freeze_vision:
        model.model.visual.requires_grad_(False)
    if config.gradient_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
        model.train()  # the library recomputes only then; there is no dropout in these models


def engine_settings(config: LearnerConfig) -> dict[str, Any]:
    zero: dict[str, Any] = {"stage": config.zero_stage, "stage3_param_persistence_threshold": SMALLEST_PARTITIONED}
    memory = {"device": "cpu", "pin_memory": bool(config.gpus_per_learner)}
    if config.offload != "none":
        zero["offload_optimizer"] = memory
    if config.offload == "parameters":
        zero["offload_param"] = memory
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,  # the loop says itself which micro-batch is the last one
        "gradient_clipping": config.max_grad_norm,
        "bf16": {"enabled": config.dtype == "bfloat16"},
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }
