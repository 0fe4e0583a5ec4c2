"""Settings of the rewards: what counts in a plan turn, and how strictly answers are read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class RewardConfig:
    query_weight: float = 0.2
    """Plan turn: weight of cos(embed(query), embed(gold query)). The paper's plan reward is (.5, 0, .5) for query, entity and routing."""
    entity_weight: float = 0.3
    """Plan turn: weight of the fraction of the gold query's entities that the query names; by embedding alone a wrong name scores .95."""
    routing_weight: float = 0.5
    """Plan turn: weight of naming exactly one retriever, the gold one."""
    paper_stops: bool = False
    """Plan turns: `None` is compared like any other query and retriever, as in the paper: stopping too early still earns the cosine of the word
    `None` with the gold query, and a search where nothing is left that of its query with `None`. False: stopping is right or wrong."""
    entity_gates_query: bool = False
    """Multiply the query part by the entity match, so that a similar query about somebody else earns nothing for being similar."""
    format_weight: float = 0.0
    """Share of every reward that the format alone earns; 0, because a malformed turn earns nothing anyway."""
    short_answer_words: int = 5
    """A single gold answer of at most so many words is right or wrong; a longer one earns its token recall."""
    spare_answer_tokens: int = 3
    """An answer longer than its gold by more tokens than this earns nothing: recall alone would pay for listing everything. -1: no limit,
    as in the paper."""
    paper_tokens: bool = False
    """Answers are compared by the tokens of the paper's evaluator, peculiarities included, as its reward does."""
    actors: int = 1
    """Processes that score, each a chunk at a time. More where `seconds_score` grows with the number of rollout workers."""
    terms: dict[str, Any] = field(default_factory=dict)
    """Rewards to add up instead of the step reward alone: name, or MODULE:FUNCTION of your own, -> weight, or weights by kind of turn, as in
    {step: 1, retrieval_cost: 0.1, "mine:brevity": {final: 0.2}}. Empty: the step reward. See docs/rewards.md."""

    def __post_init__(self) -> None:
        total = self.query_weight + self.entity_weight + self.routing_weight
        if abs(total - 1.0) > 1e-6:
            raise ValueError(f"reward.query_weight + reward.entity_weight + reward.routing_weight is {total:g}; it has to be 1")
        if not 0.0 <= self.format_weight <= 1.0:
            raise ValueError(f"reward.format_weight is {self.format_weight:g}; it has to lie between 0 and 1")
