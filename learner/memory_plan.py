"""What one learner process will hold, in bytes, worked out from the shapes of the policy and the settings. Pure.

b: bytes of a number of `learner.dtype` (4 or 2); P: parameters; T: those that are trained; N: `learner.num_learners`.

| ZeRO | parameters | gradients | optimizer |
|---|---|---|---|
| 0 | bP | bT | 8T (two moments, float32) |
| 1 | bP | bT | 12T/N (a float32 copy and two moments) |
| 2 | bP | bT/N | 12T/N |
| 3 | bP/N | bT/N | 12T/N |

LoRA: T is the adapters, P the policy and the adapters. `offload` moves the optimizer (and what it is fed with) or, with ZeRO 3, the parameters,
too, to main memory. Beside them: ZeRO's buffer of REDUCE_BUCKET gradients while they are exchanged (ZeRO 3 holds it all the time), with ZeRO 3 the
layers that are gathered, for `kl_weight` the reference policy, and for `transport=collective` two buckets of weights.
"""

from __future__ import annotations

from dataclasses import dataclass

from learner.config import LearnerConfig
from learner.engine import SMALLEST_PARTITIONED
from learner.saved_activations import SavedBytes

REDUCE_BUCKET = 500_000_000
"""Gradients that DeepSpeed 0.19 exchanges at a time."""
MOST_GATHERED = 1_000_000_000
"""Parameters that DeepSpeed's ZeRO 3 keeps gathered, at most."""
STEP_BYTES = 8
"""Of each parameter of a rank during AdamW's step: its gradient in float32 and a temporary of the same size."""


@dataclass(frozen=True)
class Counted:
    """Numbers of elements."""

    parameters: int
    """Of the policy, adapters included; tied weights once."""
    trained: int
    vision: int
    """Of the vision tower."""
    small: int = 0
    """In tensors that ZeRO 3 does not partition."""


@dataclass(frozen=True)
class RankMemory:
    """Of one learner, in bytes; on its GPU, unless it says otherwise."""

    parameters: int
    gradients: int
    optimizer: int
    reference: int
    """The policy that `kl_weight` compares with."""
    exchange: int
    """Buffers: of gradients, of gathered layers, of weights on their way to the workers."""
    activations: int
    """Kept for the backward pass, at the height of it."""
    step: int
    """What the optimizer's step needs when the activations are gone."""
    host: int
    """In main memory: what `offload` moved there, and the copy that a checkpoint is written from."""

    @property
    def peak(self) -> int:
        held = self.parameters + self.gradients + self.optimizer + self.reference
        return held + max(self.exchange + self.activations, self.step)


def rank_memory(counted: Counted, config: LearnerConfig, saved: SavedBytes) -> RankMemory:
    """As in the table above. A reference shares a frozen vision tower below ZeRO 3, and is not needed with LoRA."""
    b = 2 if config.dtype == "bfloat16" else 4
    stage, n = config.zero_stage, config.num_learners
    trained = counted.trained
    weights = b * (counted.small + (counted.parameters - counted.small) // n if stage == 3 else counted.parameters)
    gradients = b * (trained // n if stage >= 2 else trained)
    optimizer = 12 * trained // n if stage else 8 * trained
    step = STEP_BYTES * trained // n if stage else 4 * trained
    exchange = b * REDUCE_BUCKET if stage >= 2 else 0
    if stage == 3:
        exchange += b * min(MOST_GATHERED, counted.parameters)
    if config.transport == "collective" and config.gpus_per_learner:
        exchange += 2 * config.bucket_bytes
    reference = 0
    if config.kl_weight and not config.lora_rank:
        own = counted.parameters - (counted.vision if config.freeze_vision and stage < 3 else 0)
        reference = b * (own // n if stage == 3 else own)
    host = weights + optimizer  # of a checkpoint
    if config.offload != "none":
        host += optimizer + 4 * trained // n
        optimizer, step = 0, 0
        gradients = gradients if stage == 1 else 0
    if config.offload == "parameters":
        host += weights
        weights = b * counted.small
    return RankMemory(
        parameters=weights,
        gradients=gradients,
        optimizer=optimizer,
        reference=reference,
        exchange=exchange,
        activations=saved.kept(config.gradient_checkpointing),
        step=step,
        host=host,
    )


def counted(model: object) -> Counted:
    """Of a Qwen2.5-VL model, frozen and adapted as it will be trained."""
    parameters = list(model.parameters())  # type: ignore[attr-defined]
    return Counted(
        parameters=sum(parameter.numel() for parameter in parameters),
        trained=sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
        vision=sum(parameter.numel() for parameter in model.model.visual.parameters()),  # type: ignore[attr-defined]
        small=sum(parameter.numel() for parameter in parameters if parameter.numel() < SMALLEST_PARTITIONED),
    )
