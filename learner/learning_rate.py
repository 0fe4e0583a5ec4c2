"""The learning rate of each update."""

from __future__ import annotations

import math

from learner.config import LearnerConfig

LR_FLOOR = 0.1  # share of the learning rate that is left after it has decayed


def learning_rate(config: LearnerConfig, policy_version: int) -> float:
    """The learning rate of the update from this version to the next: a linear rise to `lr` over `warmup_iterations` updates, then `lr_schedule`
    down to a tenth of it at update `lr_decay_iterations`. It depends on the version alone, so a resumed run has the same."""
    update = policy_version + 1
    if update < config.warmup_iterations:
        return config.lr * update / config.warmup_iterations
    if config.lr_schedule == "constant":
        return config.lr
    begin = max(1, config.warmup_iterations)
    gone = min(1.0, (update - begin) / max(1, config.lr_decay_iterations - begin))
    left = 1 - gone if config.lr_schedule == "linear" else (1 + math.cos(math.pi * gone)) / 2
    return config.lr * (LR_FLOOR + (1 - LR_FLOOR) * left)
