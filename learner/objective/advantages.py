"""Advantages: how much better a turn is than its siblings (Step-GRPO), an episode than the others of its question (GRPO). Only numpy."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from learner.config import LearnerConfig
from rewards.scored_summary import KINDS, ScoredSummary
from rollout.nan_check import refuse_numbers
from rollout.records import ScoredTurn

SMALLEST_STD = 1e-4  # smaller differences are rounding errors, which normalising would amplify
EPSILON = 1e-6  # added to the divisor


@dataclass(frozen=True)
class GroupAdvantages:
    advantages: np.ndarray  # (n,) float32; 0 in groups without variance
    varied: np.ndarray  # (n,) bool: whether the rewards of its group differ; nothing is learned from the others
    groups: int
    dropped: int


@dataclass(frozen=True)
class Groups:
    """`n` rewards in `k` groups: (n,) float64, (n,) int64, then (k,) each; the standard deviation is that of the population.
    `question`, (k,) int64: equal for groups whose rewards depend on each other. `elsewhere`, (n,): what a reward that is alone in its group is
    compared with."""

    rewards: np.ndarray
    member: np.ndarray
    size: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    question: np.ndarray
    elsewhere: np.ndarray

    @classmethod
    def of(
        cls,
        rewards: np.ndarray,
        groups: Sequence[str] | np.ndarray,
        questions: np.ndarray | None = None,
        elsewhere: np.ndarray | None = None,
    ) -> Groups:
        """`questions`: (n,) int64; None: every group is a question. `elsewhere`: None: a reward alone in its group is compared with nothing."""
        rewards = np.asarray(rewards, np.float64)
        if not np.isfinite(rewards).all():  # a group with NaN would have no variance, and be dropped silently
            found = {f"reward {i} (group {groups[i]})": reward for i, reward in enumerate(rewards)}
            refuse_numbers(found, "rewards to compare", "look at what gave them")
        keys, first, member = np.unique(_sortable(groups), return_index=True, return_inverse=True)
        size = np.bincount(member, minlength=len(keys))
        mean = np.bincount(member, rewards, len(keys)) / np.maximum(size, 1)
        std = np.sqrt(np.bincount(member, (rewards - mean[member]) ** 2, len(keys)) / np.maximum(size, 1))
        question = np.arange(len(keys)) if questions is None else np.unique(questions[first], return_inverse=True)[1]
        return cls(rewards, member, size, mean, std, question, rewards if elsewhere is None else elsewhere)


def mean_of_the_others(groups: Groups) -> np.ndarray:
    """(n,): mean of the other rewards of the group (RLOO, Ahmadian et al. 2024, arXiv 2402.14740); in a group of one, `elsewhere`."""
    size, total = groups.size[groups.member], (groups.size * groups.mean)[groups.member]
    return np.where(size > 1, (total - groups.rewards) / np.maximum(size - 1, 1), groups.elsewhere)


def mean_shrunk_to_the_batch(groups: Groups) -> np.ndarray:
    """(n,): (1 - s) * mean of the others of the group + s * mean of the groups of other questions, where s = v / (v + d) (James-Stein): v is the
    mean variance of a group's mean, d the variance between the means, both over *other questions*: a turn decides which further groups its own
    has. Zeng et al. 2025, arXiv 2511.03710. A group of one is measured against the others (s = 1) and says nothing about v; a single question
    against itself (s = 0)."""

    def elsewhere(values: np.ndarray) -> np.ndarray:
        """(k,): sum over the groups of other questions."""
        return values.sum() - np.bincount(groups.question, values)[groups.question]

    known = groups.size > 1
    count, mean_variance = elsewhere(np.ones(len(known))), np.where(known, groups.std**2 / np.maximum(groups.size - 1, 1), 0.0)
    within = elsewhere(mean_variance) / np.maximum(elsewhere(known.astype(float)), 1)
    others = elsewhere(groups.mean) / np.maximum(count, 1)
    between = np.maximum(elsewhere(groups.mean**2) / np.maximum(count, 1) - others**2, 0.0)
    share = np.where(count > 0, np.where(known, within / (within + between + EPSILON), 1.0), 0.0)[groups.member]
    return (1 - share) * mean_of_the_others(groups) + share * others[groups.member]


BASELINES: Mapping[str, Callable[[Groups], np.ndarray]] = {
    "mean": lambda groups: groups.mean[groups.member],  # as in GRPO (Shao et al. 2024, arXiv 2402.03300, section 4.1.2)
    "leave_one_out": mean_of_the_others,
    "shrunk": mean_shrunk_to_the_batch,
}


def group_advantages(
    rewards: np.ndarray, groups: Sequence[str] | np.ndarray, normalisation: str = "std", baseline: str = "mean", **of: np.ndarray
) -> GroupAdvantages:
    """(reward - baseline) / scale; by default (r - mean of its group) / (std of its group + 1e-6). rewards: (n,); groups: n names or numbers.
    The scale is, by `normalisation`: `std`, of the group (GRPO); `batch_std`, of all rewards (Liu et al. 2025, arXiv 2508.08221; REINFORCE++, arXiv
    2501.03262); `none` (Dr. GRPO, Liu et al. 2025, arXiv 2503.20783, section 3): the first gives very easy and very hard groups too much weight.
    A group whose centred rewards are all 0 (with `std`: without variance) is dropped: its advantages are 0. `of`: as `Groups.of` takes them."""
    found = Groups.of(rewards, groups, **of)
    centred = found.rewards - BASELINES[baseline](found)
    spread = found.std
    if normalisation != "std":
        spread = np.zeros(len(found.size))
        np.maximum.at(spread, found.member, np.abs(centred))
    differ = spread >= SMALLEST_STD
    varied = differ[found.member]
    scaled = centred
    if normalisation == "std":
        scaled = centred / (found.std[found.member] + EPSILON)
    elif normalisation == "batch_std" and len(centred):
        scaled = centred / (found.rewards.std() + EPSILON)
    return GroupAdvantages(np.where(varied, scaled, 0.0).astype(np.float32), varied, len(found.size), int((~differ).sum()))


def component_advantages(components: Sequence[Mapping[str, float]], groups: Sequence[str] | np.ndarray) -> GroupAdvantages:
    """GDPO (Liu et al. 2026, arXiv 2601.05242, section 3): each part of the reward is normalised inside its group, then their sum over the batch:
        A_k = (r_k - mean_group r_k) / std_group r_k,   A = sum_k A_k,   advantage = (A - mean_batch A) / (std_batch A + 1e-6)
    A part that is missing is 0. A group in which no part varies is dropped; all are, where the parts cancel each other."""
    member = _sortable(groups)
    total, varied = np.zeros(len(components)), np.zeros(len(components), bool)
    for name in sorted({name for parts in components for name in parts}):
        alone = group_advantages(np.array([parts.get(name, 0.0) for parts in components]), member)
        total += alone.advantages.astype(np.float64)
        varied |= alone.varied
    if len(total) and total.std() < SMALLEST_STD:  # the components cancel each other
        varied[:] = False
    scaled = (total - total.mean()) / (total.std() + EPSILON) if len(total) else total
    count, kept = len(np.unique(member)), len(np.unique(member[varied]))
    return GroupAdvantages(np.where(varied, scaled, 0.0).astype(np.float32), varied, count, count - kept)


def _sortable(groups: Sequence[str] | np.ndarray) -> np.ndarray:
    found = np.asarray(groups)
    return found if found.dtype.kind == "i" else np.asarray(groups, dtype=object).astype(str)


def _question_numbers(scored: ScoredSummary) -> np.ndarray:
    return np.unique(_sortable(scored.questions), return_inverse=True)[1][scored.episode]


def mean_of_other_episodes(scored: ScoredSummary) -> np.ndarray:
    """(turns,): mean reward of the turns of the same kind in the other episodes of the question, which know nothing of this turn; where there are
    none (`branch` mode), its own reward."""
    of_question, of_episode = (len(KINDS) * part.astype(int) + scored.kind for part in (_question_numbers(scored), scored.episode))

    def elsewhere(values: np.ndarray) -> np.ndarray:
        return np.bincount(of_question, values)[of_question] - np.bincount(of_episode, values)[of_episode]

    count = elsewhere(np.ones(len(scored)))
    return np.where(count > 0, elsewhere(scored.rewards) / np.maximum(count, 1), scored.rewards)


@dataclass(frozen=True)
class TurnAdvantages:
    advantages: np.ndarray  # (turns,) float32: `step_weight` * step advantage + `episode_weight` * episode advantage
    kept: np.ndarray  # (turns,) bool: whether it is learned from: one of its groups varies, and it is not masked
    steps: GroupAdvantages
    episodes: GroupAdvantages
    names: np.ndarray  # (turns,) float32: of the tokens from a knowledge base's name on; as of the others, unless the reward is split
    masked: np.ndarray  # (turns,) bool: cut off (`learner.overlong=mask`) or `too_old`


def too_old(scored: ScoredSummary, config: LearnerConfig, version: int) -> np.ndarray:
    """(turns,) bool: whether a token was sampled more than `max_staleness` updates before `version`, which learns from it."""
    bound = config.max_staleness or math.inf
    return version - scored.policy_version.astype(int) > bound


def turn_advantages(turns: ScoredSummary | Sequence[ScoredTurn], config: LearnerConfig, version: int = 0) -> TurnAdvantages:
    """Advantages of all turns; those of an episode are in order. `version`: of the policy that learns. Raises `NotFiniteError`."""
    scored = turns if isinstance(turns, ScoredSummary) else ScoredSummary.of(turns)
    outcomes = scored.episode_outcomes()
    questions = [scored.questions[place] for place in outcomes]
    if config.normalisation == "components":
        steps = component_advantages(scored.parts, scored.states)
        episodes = component_advantages([{"outcome": outcome} for outcome in outcomes.values()], questions)
    else:  # Step-GRPO (arXiv 2505.22095) and GRPO with outcome supervision (arXiv 2402.03300, section 4.1.2)
        split = ~np.isnan(scored.of_routes)
        rewards = scored.rewards - np.where(split, scored.of_routes, 0.0)
        related = {"questions": _question_numbers(scored), "elsewhere": mean_of_other_episodes(scored)}
        steps = group_advantages(rewards, scored.states, config.normalisation, config.baseline, **related)
        episodes = group_advantages(np.array(list(outcomes.values())), questions, config.normalisation, config.baseline)
    # An episode without an outcome is compared with none.
    of_episode, varied = np.zeros(len(scored.episodes)), np.zeros(len(scored.episodes), bool)
    of_episode[list(outcomes)], varied[list(outcomes)] = episodes.advantages, episodes.varied
    kept = (config.step_weight != 0) * steps.varied | (config.episode_weight != 0) * varied[scored.episode]
    advantages = config.step_weight * steps.advantages + config.episode_weight * of_episode[scored.episode]
    names = advantages.copy()
    if config.normalisation != "components" and split.any():  # routes are compared with those of the siblings that ask
        routes = group_advantages(scored.of_routes[split], scored.states[split], config.normalisation, config.baseline)
        names[split] = config.step_weight * routes.advantages + config.episode_weight * of_episode[scored.episode[split]]
        if config.routes == "sampled":
            kept[split] |= routes.varied
    masked = too_old(scored, config, version) | (scored.cut_off & (config.overlong == "mask"))
    if not np.isfinite(advantages).all():
        wrong = {f"advantage of turn {i} (question {question})": advantages[i] for i, question in enumerate(scored.question_of)}
        refuse_numbers(wrong, "advantages", "rewards are so large that comparing them overflows; scale them down (weights in reward)")
    return TurnAdvantages(advantages, kept & ~masked, steps, episodes, names, masked)


def questions_with_variance(scored: ScoredSummary, config: LearnerConfig, version: int = 0) -> set[str]:
    """Ids of the questions with a turn that is learned from (DAPO, Yu et al. 2025, arXiv 2503.14476, equation 11)."""
    return {question for question, kept in zip(scored.question_of, turn_advantages(scored, config, version).kept, strict=True) if kept}
