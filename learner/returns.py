"""What a turn led to: discounted returns along an episode, for comparing what was done in states that several episodes came through."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def discounted_returns(rewards: np.ndarray, episodes: Sequence[str], discount: float) -> np.ndarray:
    """R_t = r_t + discount * R_(t+1) along every episode, as in GiGPO (Feng et al. 2025, arXiv 2505.10978, section 4).

    rewards: (n,) float, the turns of an episode in their order, which may be mixed with those of others; episodes: n ids.
    Returns (n,) float64.
    """
    returns = np.zeros(len(rewards))
    later: dict[str, float] = {}
    for i in range(len(rewards) - 1, -1, -1):
        returns[i] = rewards[i] + discount * later.get(episodes[i], 0.0)
        later[episodes[i]] = returns[i]
    return returns


def anchor_groups(questions: Sequence[str], states: Sequence[str]) -> list[str]:
    """GiGPO's anchor states: turns are compared when their states are equal and their trajectories answer the same question."""
    return [f"{question}\n{state}" for question, state in zip(questions, states, strict=True)]
