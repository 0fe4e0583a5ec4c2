"""What counts equally in the loss: tokens, turns, steps or episodes, as a weight for the tokens of each turn.

The loss is sum(weights * per-token loss) / denominator, and the denominator is the sum of the shares of all turns of the mini-batch. Both are known
before anything is packed, so packing and sharing out change nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rollout.records import ScoredTurn


@dataclass(frozen=True)
class Weighed:
    """One entry for every turn."""

    weights: np.ndarray
    """(turns,) float64: weight of each of its tokens."""
    shares: np.ndarray
    """(turns,) float64: what the turn adds to the denominator."""


UNITS: Mapping[str, Callable[[Sequence[ScoredTurn]], Sequence[object]]] = {
    "turn_mean": lambda turns: range(len(turns)),
    "step_mean": lambda turns: [(turn.episode, turn.state_key) for turn in turns],
    "sequence_mean": lambda turns: [turn.episode for turn in turns],
}
"""What has the weight of one, however many tokens it has: GRPO's response (arXiv 2402.03300, equation 3: 1 / |o|), a step (the turns of an episode
from one state), an episode."""


def weigh(turns: Sequence[ScoredTurn], kind_weights: Sequence[float], aggregation: str, constant_tokens: int) -> Weighed:
    """Token weights of turns that are learned together.

    `token_mean`: every token counts the same (DAPO, arXiv 2503.14476, section 3.3). `turn_mean`, `step_mean`, `sequence_mean`: every unit of
    `UNITS` does, and the tokens within it. `constant`: every token counts the same and the denominator is the number of turns * `constant_tokens`,
    so a long turn is not weighed down by its length (Dr. GRPO, Liu et al. 2025, arXiv 2503.20783, section 3).
    kind_weights: weight of the kind of each turn.
    """
    kinds, lengths = np.asarray(kind_weights, np.float64), np.array([len(turn.turn.response_ids) for turn in turns], np.float64)
    if aggregation == "token_mean":
        return Weighed(kinds, kinds * lengths)
    if aggregation == "constant":
        return Weighed(kinds / constant_tokens, kinds)
    tokens: dict[object, float] = {}
    units = UNITS[aggregation](turns)
    for unit, length in zip(units, lengths, strict=True):
        tokens[unit] = tokens.get(unit, 0.0) + length
    weights = kinds / np.array([tokens[unit] for unit in units])
    return Weighed(weights, weights * lengths)
