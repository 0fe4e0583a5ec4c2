"""Comparing rewards inside groups: what a reward is measured against (a baseline), and on which scale (a normalisation).

Every option of `learner.baseline` and `learner.normalisation` is one function here, found by its name in `BASELINES` and `SCALES`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

SMALLEST_STD = 1e-4
"""Rewards of a group that differ less than this are equal up to rounding; normalising them would blow the rounding up to advantages of 1."""
EPSILON = 1e-6
"""Added to the standard deviation that advantages are divided by."""


@dataclass(frozen=True)
class Compared:
    """Advantages inside groups."""

    advantages: np.ndarray
    """(n,) float32; 0 where the comparison says nothing."""
    varied: np.ndarray
    """(n,) bool: whether the comparison says anything about the group; the others teach nothing."""
    groups: int
    dropped: int
    """Groups about which it says nothing."""


@dataclass(frozen=True)
class Groups:
    """Rewards sorted into groups. `n` rewards, `k` groups."""

    rewards: np.ndarray
    """(n,) float64."""
    member: np.ndarray
    """(n,) int64: the group of each reward."""
    size: np.ndarray
    """(k,) int64."""
    mean: np.ndarray
    """(k,) float64."""
    std: np.ndarray
    """(k,) float64: population standard deviation."""

    @classmethod
    def of(cls, rewards: np.ndarray, groups: Sequence[str] | np.ndarray) -> Groups:
        rewards = np.asarray(rewards, np.float64)
        keys, member = np.unique(np.asarray(groups, dtype=object).astype(str), return_inverse=True)
        size = np.bincount(member, minlength=len(keys))
        mean = np.bincount(member, rewards, len(keys)) / np.maximum(size, 1)
        std = np.sqrt(np.bincount(member, (rewards - mean[member]) ** 2, len(keys)) / np.maximum(size, 1))
        return cls(rewards, member, size, mean, std)

    def __len__(self) -> int:
        return len(self.size)


def mean_of_group(groups: Groups) -> np.ndarray:
    """(n,): the mean of the group, the reward itself included. GRPO (Shao et al. 2024, arXiv 2402.03300, section 4.1.2)."""
    return groups.mean[groups.member]


def mean_of_the_others(groups: Groups) -> np.ndarray:
    """(n,): the mean of the other rewards of the group, which keeps the policy gradient unbiased. RLOO (Ahmadian et al. 2024, arXiv
    2402.14740; Kool et al. 2019). A group of one has no others: its own reward, hence no advantage."""
    size, total = groups.size[groups.member], (groups.size * groups.mean)[groups.member]
    return np.where(size > 1, (total - groups.rewards) / np.maximum(size - 1, 1), groups.rewards)


def mean_shrunk_to_the_batch(groups: Groups) -> np.ndarray:
    """(n,): (1 - s) * mean of the other rewards of the group + s * mean of all other groups, with the James-Stein coefficient
    s = v / (v + d): v is the mean variance of a group's mean, d the variance between the means, both taken over the *other* groups, so that
    the baseline of a reward never depends on it. Zeng et al. 2025, arXiv 2511.03710.

    Small groups that differ little from each other borrow from one another; a group of one is measured against the others (s = 1), a single
    group against itself (s = 0). Groups of one say nothing about v.
    """
    if len(groups) < 2:
        return mean_of_the_others(groups)
    count = len(groups) - 1
    known = groups.size > 1
    # Sample variance over size: the variance of the mean of a group.
    of_mean = np.where(known, groups.std**2 / np.maximum(groups.size - 1, 1), 0.0)
    within = (of_mean.sum() - of_mean) / np.maximum(known.sum() - known, 1)
    others = (groups.mean.sum() - groups.mean) / count
    between = np.maximum(((groups.mean**2).sum() - groups.mean**2) / count - others**2, 0.0)
    share = np.where(known, within / (within + between + EPSILON), 1.0)[groups.member]
    return (1 - share) * mean_of_the_others(groups) + share * others[groups.member]


def by_group_std(groups: Groups, centred: np.ndarray) -> np.ndarray:
    """Divided by the standard deviation of the group + 1e-6. GRPO (arXiv 2402.03300, section 4.1.2)."""
    return centred / (groups.std[groups.member] + EPSILON)


def by_batch_std(groups: Groups, centred: np.ndarray) -> np.ndarray:
    """Divided by the standard deviation of all rewards of the batch + 1e-6: easy and hard groups keep their relation. Liu et al. 2025 ("Tricks or
    traps?", arXiv 2508.08221); REINFORCE++ (arXiv 2501.03262)."""
    return centred / (groups.rewards.std() + EPSILON) if len(groups.rewards) else centred


def not_scaled(groups: Groups, centred: np.ndarray) -> np.ndarray:
    """As they are: dividing by the standard deviation weighs very easy and very hard groups up. Dr. GRPO (Liu et al. 2025, arXiv 2503.20783,
    section 3)."""
    return centred


BASELINES: Mapping[str, Callable[[Groups], np.ndarray]] = {
    "mean": mean_of_group,
    "leave_one_out": mean_of_the_others,
    "shrunk": mean_shrunk_to_the_batch,
}
SCALES: Mapping[str, Callable[[Groups, np.ndarray], np.ndarray]] = {"std": by_group_std, "batch_std": by_batch_std, "none": not_scaled}


def group_advantages(
    rewards: np.ndarray, groups: Sequence[str] | np.ndarray, normalisation: str = "std", baseline: str = "mean"
) -> Compared:
    """(reward - baseline) on the scale of `normalisation`; by default GRPO's (r - mean of its group) / (std of its group + 1e-6).

    A group whose rewards are all equal, and a group of one, has no variance: it is dropped, its advantages are 0. With the baseline `shrunk`
    such a group is compared with the others of the batch, and dropped only where that leaves nothing.

    rewards: (n,) float; groups: n keys. But for `shrunk` and `batch_std`, nothing outside a group changes the advantages inside it.
    """
    found = Groups.of(rewards, groups)
    centred = found.rewards - BASELINES[baseline](found)
    spread = found.std
    if baseline == "shrunk":
        spread = np.zeros(len(found))
        np.maximum.at(spread, found.member, np.abs(centred))
    says = spread >= SMALLEST_STD
    varied = says[found.member]
    scaled = SCALES[normalisation](found, centred)
    return Compared(np.where(varied, scaled, 0.0).astype(np.float32), varied, len(found), int((~says).sum()))


def component_advantages(
    components: Sequence[Mapping[str, float]], groups: Sequence[str] | np.ndarray, weights: Mapping[str, float] | None = None
) -> Compared:
    """GDPO (Liu et al. 2026, arXiv 2601.05242, section 3): each reward component is normalised inside its group, the results are added up,
    and the sum is normalised over the batch, so that different mixtures of components do not collapse into one advantage:

        A_k = (r_k - mean_group r_k) / std_group r_k,   A = sum_k w_k A_k,   advantage = (A - mean_batch A) / (std_batch A + 1e-6)

    components: n mappings, name -> part of the reward, 0 where a name is missing. `weights`: w_k, 1 where a name is missing.
    A group in which no component varies is dropped, and all of them where the components cancel each other everywhere.
    """
    weights = weights or {}
    member = np.asarray(groups, dtype=object)
    total, varied = np.zeros(len(components)), np.zeros(len(components), bool)
    count = len(np.unique(member.astype(str)))
    for name in sorted({name for parts in components for name in parts}):
        compared = group_advantages(np.array([parts.get(name, 0.0) for parts in components]), member)
        total += weights.get(name, 1.0) * compared.advantages.astype(np.float64)
        varied |= compared.varied & (weights.get(name, 1.0) != 0)
    if len(total) and total.std() < SMALLEST_STD:  # components that cancel each other
        varied[:] = False
    scaled = (total - total.mean()) / (total.std() + EPSILON) if len(total) else total
    kept = len(np.unique(member[varied].astype(str)))
    return Compared(np.where(varied, scaled, 0.0).astype(np.float32), varied, count, count - kept)
