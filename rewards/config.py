"""Settings of the rewards: what counts in a plan turn, and how strictly answers are read."""

from dataclasses import dataclass, field
from typing import Annotated

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt


@dataclass
class RewardConfig:
    query_weight: NonNegativeFloat = 0.2
    """Plan turn: weight of cos(embed(query), embed(gold query)). In the paper: .5, 0, .5 for query, entity and routing."""
    entity_weight: NonNegativeFloat = 0.3
    """Plan turn: weight of the share of the gold query's entities that the query names; by cosine alone a wrong name scores .95."""
    routing_weight: NonNegativeFloat = 0.5
    """Plan turn: weight of naming exactly one retriever, the gold one."""
    paper_stops: bool = False
    """Plan turn: `None` is compared like any other query and retriever, as in the paper. False: stopping is right or wrong."""
    format_weight: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of every reward that a well-formed turn earns by its format alone."""
    short_answer_words: NonNegativeInt = 5
    """With a single gold answer of at most this many words, an answer is right or wrong; with a longer one it earns token recall."""
    spare_answer_tokens: Annotated[int, Field(ge=-1)] = 3
    """An answer with more extra tokens than this earns nothing: recall would reward listing everything. -1: no limit (the paper)."""
    need_calibration: str = ""
    """File of `r1-router fit-needs`, to match needs by another embedder; empty: MiniLM's, which is part of this package."""
    paper_tokens: bool = False
    """Compare answers by the tokens of the paper's evaluator, as its reward does."""
    actors: PositiveInt = 1
    """Processes that score. Use more if `seconds_score` grows with the number of rollout workers."""
    resource: str = ""
    """Custom Ray resource of the nodes for reward actors; empty: any node, or those with the resource `rewards` where there are any."""
    terms: dict[str, float | dict[str, float]] = field(default_factory=dict)
    """Rewards to add up: name or MODULE:FUNCTION -> weight, or weights by kind of turn. Empty: the step reward (docs/06_rollout_and_rewards.md)."""

    min_spread: NonNegativeFloat = 0.1
    """`query_value`, `route_regret`: plan turns whose values differ by less than this are not judged; the rest is noise."""

    def __post_init__(self) -> None:
        total = self.query_weight + self.entity_weight + self.routing_weight
        if abs(total - 1.0) > 1e-6:
            raise ValueError(f"reward.query_weight + reward.entity_weight + reward.routing_weight is {total:g}; it has to be 1")
