"""Which turns are learned from together: the turns of an iteration, dealt into one mini-batch for each optimizer step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from learner.advantages import TurnAdvantages
from learner.aggregation import weigh
from learner.config import LearnerConfig
from learner.micro_batches import Row, rows_of
from rollout.records import ScoredTurn


def deal(turns: Sequence[ScoredTurn], advantages: TurnAdvantages, config: LearnerConfig, policy_version: int) -> list[list[Row]]:
    """The rows of all turns that are learned, in mini-batches with the same mixture of turn kinds, in an order seeded by the policy version.

    Not learned are turns whose comparisons said nothing, kinds of weight 0, and turns without a token.
    """
    weights = [config.kind_weights.get(turn.turn.kind, 1.0) for turn in turns]
    learned = [i for i, turn in enumerate(turns) if advantages.kept[i] and weights[i] and len(turn.turn.response_ids)]
    numbers = {episode: number for number, episode in enumerate(dict.fromkeys(turn.episode for turn in turns))}
    weighed = weigh([turns[i] for i in learned], [weights[i] for i in learned], config.aggregation, config.constant_tokens)
    by_kind: dict[str, list[Row]] = {}
    for kind in sorted({turns[i].turn.kind for i in learned}):
        chosen = [(place, i) for place, i in enumerate(learned) if turns[i].turn.kind == kind]
        by_kind[kind] = rows_of(
            [turns[i] for _, i in chosen],
            [advantages.advantages[i] for _, i in chosen],
            [weighed.weights[place] for place, _ in chosen],
            config.tokens_per_micro_batch,
            shares=[weighed.shares[place] for place, _ in chosen],
            episodes=[numbers[turns[i].episode] for _, i in chosen],
        )
    order = np.random.default_rng((config.seed, policy_version))
    dealt: list[list[Row]] = [[] for _ in range(config.updates_per_iteration)]
    place = 0
    for rows in by_kind.values():
        for i in order.permutation(len(rows)) if len(dealt) > 1 else range(len(rows)):
            dealt[place % len(dealt)].append(rows[i])
            place += 1
    return [rows for rows in dealt if rows]
