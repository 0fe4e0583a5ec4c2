"""Whether two methods differ on the same questions, or only seem to: paired tests beside the paired bootstrap of `measures.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.stats import binomtest

from experiments.measures import Counts, columns, ratio

PERMUTATIONS = 10_000
AT_ONCE = 1_000


def permutation_p(before: Sequence[Counts], after: Sequence[Counts], name: str, seed: int = 0) -> float:
    """Two-sided p of a paired permutation test: how often the measure differs at least as much when, question by question, chance says which
    result belongs to which method. Holds for ratios of sums as well. NaN where one of them was not measured.

    Raises ValueError when the two differ in length.
    """
    first, second = columns(before, name), columns(after, name)
    if len(first) != len(second):
        raise ValueError(f"a paired test needs the same questions twice: {len(first)} before, {len(second)} after")
    if not first[:, 1].sum() or not second[:, 1].sum():
        return float("nan")
    observed = abs(ratio(second.sum(0)) - ratio(first.sum(0)))
    rng, extreme = np.random.default_rng(seed), 0
    total, change = first + second, second - first
    for _ in range(PERMUTATIONS // AT_ONCE):
        signs = rng.integers(0, 2, size=(AT_ONCE, len(first))) * 2 - 1
        moved = signs @ change
        differences = np.abs(ratio((total.sum(0) + moved) / 2) - ratio((total.sum(0) - moved) / 2))
        extreme += int((differences >= observed - 1e-12).sum())  # NaN, where a denominator is 0, is no difference
    return (extreme + 1) / (PERMUTATIONS + 1)


def mcnemar_p(before: Sequence[Counts], after: Sequence[Counts], name: str = "exact_match") -> float:
    """Exact McNemar test of a measure that is right or wrong: of the questions on which the two differ, is one ahead more often than a coin?

    1 where they differ on none; NaN where a question is neither right nor wrong but something between, as the mean of several episodes is. Raises
    ValueError when the two differ in length.
    """
    if len(before) != len(after):
        raise ValueError(f"a paired test needs the same questions twice: {len(before)} before, {len(after)} after")
    first, second = columns(before, name)[:, 0], columns(after, name)[:, 0]
    if not np.isin(np.concatenate([first, second]), (0.0, 1.0)).all():
        return float("nan")
    difference = second - first
    gained, lost = int((difference > 0).sum()), int((difference < 0).sum())
    return float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """p values of several tests, corrected for their number (Holm 1979); NaN stays and does not count."""
    known = sorted((p, name) for name, p in p_values.items() if p == p)
    corrected, highest = dict(p_values), 0.0
    for rank, (p, name) in enumerate(known):
        highest = max(highest, min(1.0, p * (len(known) - rank)))
        corrected[name] = highest
    return corrected
