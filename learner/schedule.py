"""The learning rate as a function of the policy version alone, so that a resumed run goes on with the same one."""

from __future__ import annotations

import math

from learner.config import LearnerConfig


def learning_rate(config: LearnerConfig, policy_version: int) -> float:
    """Of the update that leads from this version (0, 1, ...) to the next: a linear rise to `lr` over the first `warmup_iterations` updates, then
    `lr_schedule` down to `lr * lr_floor`, which update number `lr_decay_iterations` and all after it have."""
    update = policy_version + 1
    if update < config.warmup_iterations:
        return config.lr * update / config.warmup_iterations
    if config.lr_schedule == "constant":
        return config.lr
    begin = max(1, config.warmup_iterations)
    gone = min(1.0, (update - begin) / max(1, config.lr_decay_iterations - begin))
    left = 1 - gone if config.lr_schedule == "linear" else (1 + math.cos(math.pi * gone)) / 2
    return config.lr * (config.lr_floor + (1 - config.lr_floor) * left)
