"""Rows of turns that are in this process, as learner ranks make them of turns that they fetch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from learner.config import LearnerConfig
from learner.objective.advantages import TurnAdvantages
from learner.objective.batch_plan import Credit, PlannedRow, deal, planned_rows
from learner.objective.sibling_packing import Row, row_of
from rewards.scored_summary import ScoredSummary
from rollout.records import ScoredTurn


def rows_of(turns: Sequence[ScoredTurn], advantages: Sequence[float], weights: Sequence[float], longest: int) -> list[Row]:
    """The rows of turns in this process, as `planned_rows` plans them."""
    scored = ScoredSummary.of(turns)
    zeros, sampled = np.zeros(len(turns)), np.full(len(turns), np.nan)
    credit = Credit(np.ones(len(turns), bool), np.array(weights), zeros, sampled, np.array(advantages))
    planned = planned_rows(scored, np.arange(len(turns)), credit, longest)
    return [_row(row, turns, advantages, credit, scored) for row in planned]


def dealt_rows(turns: Sequence[ScoredTurn], advantages: TurnAdvantages, config: LearnerConfig, policy_version: int) -> list[list[Row]]:
    """The mini-batches of turns in this process, as `deal` plans them."""
    scored = ScoredSummary.of(turns)
    mini_batches, credit = deal(scored, advantages, config, policy_version)
    return [[_row(row, turns, advantages.advantages, credit, scored) for row in rows] for rows in mini_batches]


def _row(planned: PlannedRow, turns: Sequence[ScoredTurn], advantages: Any, credit: Credit, scored: ScoredSummary) -> Row:
    chosen = planned.turns
    episodes = scored.episode[chosen].tolist()
    columns = ([advantages[i] for i in chosen], credit.weights[chosen], episodes, credit.names[chosen], credit.routes[chosen])
    return row_of([turns[i] for i in chosen], *columns)


def denominators(turns: Sequence[ScoredTurn], advantages: TurnAdvantages, config: LearnerConfig, policy_version: int) -> list[float]:
    """Of each mini-batch."""
    return [sum(row.weight for row in rows) for rows in deal(ScoredSummary.of(turns), advantages, config, policy_version)[0]]
