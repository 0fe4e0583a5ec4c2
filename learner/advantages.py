"""Advantages: how much better a turn is than the ones it may be compared with.

Two comparisons are weighed against each other: a turn with its siblings (Step-GRPO, or GiGPO), and its episode with the other episodes of the same
question (GRPO). Only numpy here: the learner, the tests and a notebook call the same functions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from learner.comparison import Compared, component_advantages, group_advantages
from learner.config import LearnerConfig
from learner.overlong import cut_off
from learner.returns import anchor_groups, discounted_returns
from rollout.records import ScoredTurn

__all__ = ["STEP_COMPARISONS", "Compared", "TurnAdvantages", "group_advantages", "taught_questions", "turn_advantages"]


@dataclass(frozen=True)
class TurnAdvantages:
    """The advantage of every scored turn, and which of them the loss is made of."""

    advantages: np.ndarray
    """(turns,) float32: `step_weight` * step advantage + `episode_weight` * episode advantage."""
    kept: np.ndarray
    """(turns,) bool: False where every comparison that counts was between equals, and where the turn is masked (`learner.overlong=mask`)."""
    groups: int
    """Groups of turns that started from one state."""
    dropped_groups: int
    """Of those, the ones without variance."""
    episode_groups: int
    """Questions with episodes that can be compared."""
    dropped_episode_groups: int
    """Of those, the ones whose episodes all ended equally well."""


def compare_rewards(turns: Sequence[ScoredTurn], config: LearnerConfig) -> Compared:
    """Step-GRPO (arXiv 2505.22095): A_ij = (r_ij - mean_j r_ij) / std_j r_ij over the samples j of one state i, from the reward of that very
    turn. With `normalisation=components` each part of the reward is compared for itself (GDPO)."""
    states = [turn.state_key for turn in turns]
    if config.normalisation == "components":
        parts = [turn.reward.parts or {"total": turn.reward.total} for turn in turns]
        return component_advantages(parts, states, config.component_weights)
    return group_advantages(np.array([turn.reward.total for turn in turns]), states, config.normalisation, config.baseline)


def compare_returns(turns: Sequence[ScoredTurn], config: LearnerConfig) -> Compared:
    """GiGPO's step advantage (arXiv 2505.10978, section 4): turns from one state are compared by what came of them, the discounted sum of the
    rewards of this turn and the later ones of its episode. It needs whole episodes side by side (`rollout.mode=chain`)."""
    returns = discounted_returns(np.array([turn.reward.total for turn in turns]), [turn.episode for turn in turns], config.discount)
    anchors = anchor_groups([turn.episode_group for turn in turns], [turn.state_key for turn in turns])
    return group_advantages(returns, anchors, config.normalisation, config.baseline)


STEP_COMPARISONS: Mapping[str, Callable[[Sequence[ScoredTurn], LearnerConfig], Compared]] = {
    "reward": compare_rewards,
    "return": compare_returns,
}


def compare_episodes(outcomes: Sequence[ScoredTurn], config: LearnerConfig) -> Compared:
    """GRPO with outcome supervision (arXiv 2402.03300, section 4.1.2): the outcomes of the episodes of one question. `outcomes`: one turn of each
    episode, so that an episode counts once however many turns it has."""
    rewards, questions = np.array([turn.outcome for turn in outcomes]), [turn.episode_group for turn in outcomes]
    if config.normalisation == "components":  # an outcome has one part
        return component_advantages([{"outcome": reward} for reward in rewards], questions)
    return group_advantages(rewards, questions, config.normalisation, config.baseline)


def turn_advantages(turns: Sequence[ScoredTurn], config: LearnerConfig) -> TurnAdvantages:
    """Weigh the two comparisons of every turn: (1, 0) is Step-GRPO, (0, 1) plain GRPO, (1, 1) with `step_comparison=return` GiGPO.

    Every turn of an episode gets its episode's advantage. The turns of an episode stand in their order.
    """
    steps = STEP_COMPARISONS[config.step_comparison](turns, config)
    first = {turn.episode: turn for turn in turns}
    outcomes = list(first.values())
    episodes = compare_episodes(outcomes, config)
    place = {turn.episode: i for i, turn in enumerate(outcomes)}
    episode_of = np.array([place[turn.episode] for turn in turns], np.int64)
    kept = (config.step_weight != 0) * steps.varied | (config.episode_weight != 0) * episodes.varied[episode_of]
    if config.overlong == "mask":
        kept = kept & ~cut_off(turns)
    return TurnAdvantages(
        advantages=config.step_weight * steps.advantages + config.episode_weight * episodes.advantages[episode_of],
        kept=kept,
        groups=steps.groups,
        dropped_groups=steps.dropped,
        episode_groups=episodes.groups,
        dropped_episode_groups=episodes.dropped,
    )


def taught_questions(turns: Sequence[ScoredTurn], config: LearnerConfig) -> set[str]:
    """Ids of the questions with at least one turn that is learned from: those that DAPO's dynamic sampling (Yu et al. 2025, arXiv 2503.14476,
    equation 11) would keep."""
    if not turns:
        return set()
    return {turn.episode_group for turn, kept in zip(turns, turn_advantages(turns, config).kept, strict=True) if kept}
