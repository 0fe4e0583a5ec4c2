"""Advantages: how much better a turn is than the ones it may be compared with.

Two comparisons are weighed against each other: a turn with its siblings (Step-GRPO), and its episode with the other episodes of the same
question (GRPO). Only numpy here: the learner, the tests and a notebook call the same functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from learner.config import LearnerConfig
from rollout.records import ScoredTurn

SMALLEST_STD = 1e-4
"""Rewards of a group that differ less than this are equal up to rounding; normalising them would blow the rounding up to advantages of 1."""
EPSILON = 1e-6
"""Added to the standard deviation that advantages are divided by."""


@dataclass(frozen=True)
class Compared:
    """Advantages inside groups."""

    advantages: np.ndarray
    """(n,) float32; 0 where the group had no variance."""
    varied: np.ndarray
    """(n,) bool: whether the rewards of the group differ at all; the others teach nothing."""
    groups: int
    dropped: int
    """Groups without variance."""


@dataclass(frozen=True)
class TurnAdvantages:
    """The advantage of every scored turn, and which of them the loss is made of."""

    advantages: np.ndarray
    """(turns,) float32: `step_weight` * step advantage + `episode_weight` * episode advantage."""
    kept: np.ndarray
    """(turns,) bool: False where every comparison that counts was between equals."""
    groups: int
    """Groups of turns that started from one state."""
    dropped_groups: int
    """Of those, the ones without variance."""
    episode_groups: int
    """Questions with episodes that can be compared."""
    dropped_episode_groups: int
    """Of those, the ones whose episodes all ended equally well."""


def group_advantages(rewards: np.ndarray, groups: Sequence[str], normalisation: str = "std") -> Compared:
    """Group-relative advantages, (r - mean of its group) / (std of its group + 1e-6).

    This is GRPO's outcome-supervised advantage (Shao et al. 2024, arXiv 2402.03300, section 4.1.2), with the population standard deviation.
    `normalisation="none"` leaves the division out (Dr. GRPO, Liu et al. 2025, arXiv 2503.20783).
    A group of one, and a group whose rewards are all equal, has no variance: its advantages are 0 and it counts as dropped.

    rewards: (n,) float; groups: n keys. Nothing outside a group changes the advantages inside it.
    """
    rewards = np.asarray(rewards, np.float64)
    keys, member = np.unique(np.asarray(groups, dtype=object).astype(str), return_inverse=True)
    size = np.bincount(member, minlength=len(keys))
    mean = np.bincount(member, rewards, len(keys)) / np.maximum(size, 1)
    centred = rewards - mean[member]
    std = np.sqrt(np.bincount(member, centred**2, len(keys)) / np.maximum(size, 1))
    varied = (std >= SMALLEST_STD)[member]
    scaled = centred / (std[member] + EPSILON) if normalisation == "std" else centred
    return Compared(
        advantages=np.where(varied, scaled, 0.0).astype(np.float32),
        varied=varied,
        groups=len(keys),
        dropped=int((std < SMALLEST_STD).sum()),
    )


def turn_advantages(turns: Sequence[ScoredTurn], config: LearnerConfig) -> TurnAdvantages:
    """Weigh the two comparisons of every turn.

    Step-GRPO (arXiv 2505.22095): A_ij = (r_ij - mean_j r_ij) / std_j r_ij over the samples j of one state i, from the reward of that very turn.
    GRPO: the outcomes of the episodes of one question are compared, each episode once however many turns it has, and every turn of an
    episode gets its episode's advantage.
    """
    steps = group_advantages(np.array([turn.reward.total for turn in turns]), [turn.state_key for turn in turns], config.normalisation)
    first = {turn.episode: turn for turn in turns}
    outcomes = list(first.values())
    episodes = group_advantages(
        np.array([turn.outcome for turn in outcomes]), [turn.episode_group for turn in outcomes], config.normalisation
    )
    place = {turn.episode: i for i, turn in enumerate(outcomes)}
    episode_of = np.array([place[turn.episode] for turn in turns], np.int64)
    return TurnAdvantages(
        advantages=config.step_weight * steps.advantages + config.episode_weight * episodes.advantages[episode_of],
        kept=(config.step_weight != 0) * steps.varied | (config.episode_weight != 0) * episodes.varied[episode_of],
        groups=steps.groups,
        dropped_groups=steps.dropped,
        episode_groups=episodes.groups,
        dropped_episode_groups=episodes.dropped,
    )
