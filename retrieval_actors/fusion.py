"""Several rankings of the same passages as one."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

RANK_CONSTANT = 60
"""How little the first rank is above the tenth; the value of the paper."""


def reciprocal_rank_fusion(rankings: Sequence[Sequence[int]], k: int, constant: int = RANK_CONSTANT) -> list[tuple[int, float]]:
    """The k best (position, score), score = sum over the rankings that hold the position of 1 / (constant + rank), ranks from 1.

    Cormack, Clarke and Buettcher, "Reciprocal rank fusion outperforms Condorcet and individual rank learning methods", SIGIR 2009. Scores
    of different kinds (inner products, BM25) need no common scale. The order of the rankings does not matter; ties go to the earlier
    position in the knowledge base, as everywhere. A negative position stands for "nothing more" and is passed over; an empty ranking says
    nothing. A position that a ranking holds twice counts where it comes first.
    """
    terms: defaultdict[int, list[float]] = defaultdict(list)
    for ranking in rankings:
        for rank, position in enumerate(dict.fromkeys(ranking), 1):
            if position >= 0:
                terms[int(position)].append(1 / (constant + rank))
    # fsum rounds once: the same score whichever ranking came first.
    fused = [(position, math.fsum(parts)) for position, parts in terms.items()]
    return sorted(fused, key=lambda entry: (-entry[1], entry[0]))[: max(0, k)]


def interleaved(rankings: Sequence[Sequence[int]], k: int) -> list[int]:
    """The first of each ranking, then the second of each, and so on; the k first distinct ones. Negative positions are passed over."""
    longest = max(map(len, rankings), default=0)
    turns = (ranking[rank] for rank in range(longest) for ranking in rankings if rank < len(ranking))
    return list(dict.fromkeys(int(position) for position in turns if position >= 0))[: max(0, k)]
