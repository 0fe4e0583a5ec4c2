"""A reward that can be named in the configuration: what it measures of a turn, in which range, and where it comes from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rewards.judged_turn import JudgedTurn


@dataclass(frozen=True)
class Term:
    name: str
    judge: Callable[[JudgedTurn], float | None]
    """Of a well-formed turn; None where the term has nothing to say (another kind of turn, nobody knows the gold)."""
    kinds: frozenset[str]
    """The kinds of turn that it judges. Malformed turns of these earn `low`."""
    source: str
    """Paper and what is taken from it."""
    low: float = 0.0
    """The least that a turn can earn."""
    needs_chain: bool = False
    """It looks at what came of a turn, which in `branch` mode is known of one sibling only."""

    def value(self, turn: JudgedTurn) -> float | None:
        if turn.state.kind not in self.kinds:
            return None
        known = self.judge(turn)
        return self.low if known is not None and not turn.well_formed else known
