"""Uncertainty of metrics: bootstrap intervals over questions (and seeds), paired differences, paired tests. Questions are resampled with
replacement, and turns stay with their question, as turns of one episode are not independent."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import scipy.stats

from experiments.evaluation.metrics import KB, METRICS, Counts, averaged
from rollout.nan_check import refuse_numbers
from rollout.records import OUTSIDE

RESAMPLES = 2000
PERMUTATIONS = 10_000
AT_ONCE = 1_000  # Permutations that are held in memory together
SMALLEST_STD = 1e-6  # In a correlation; smaller ones are rounding errors
Interval = dict[str, Any]  # value, low and high: an estimate and its 95 % bootstrap interval, or NaN; if tested, p and p_corrected


def summarise(counts: Sequence[Counts], names: Iterable[str] = METRICS) -> dict[str, Interval]:
    return {name: interval(columns(counts, name)) for name in names}


def evaluation_summary(counts: Sequence[Counts], families: Sequence[str]) -> dict[str, Any]:
    """For summary.json: every metric with its interval, overall and by question family. `families`: that of each question. Those outside all
    knowledge bases are a family only for what is counted of them; without any, abstaining is not judged."""
    outside = families.count(OUTSIDE)
    if not outside:
        counts = [{name: found for name, found in each.items() if name != "abstention_precision"} for each in counts]
    kbs = sorted({name for found in counts for name in found if name.startswith(KB)})
    of_family = {family: [c for c, f in zip(counts, families, strict=True) if f == family] for family in sorted(set(families) - {OUTSIDE})}
    return {
        "questions": len(counts) - outside,
        "outside": outside,
        "overall": summarise(counts),
        "kb_shares": {name.removeprefix(KB): found for name, found in summarise(counts, kbs).items()},
        "by_family": {family: {"questions": len(some), **summarise(some)} for family, some in of_family.items()},
    }


def paired_difference(before: Sequence[Counts], after: Sequence[Counts]) -> dict[str, Interval]:
    """`after` minus `before`, question by question: both are resampled together. Raises ValueError when the two differ in length."""
    before, after = paired(before, after)
    return {name: interval(columns(after, name), columns(before, name)) for name in METRICS}


def tested_differences(
    pairs: Mapping[str, tuple[Sequence[Counts], Sequence[Counts]]], tested: Iterable[str]
) -> dict[str, dict[str, Interval]]:
    """Name -> metric -> second minus first of the pair; `tested` metrics with `p` (permutation test) and `p_corrected` (Holm, over names)."""
    found = {name: paired_difference(*pair) for name, pair in pairs.items()}
    for metric in tested:
        p_values = {name: permutation_p(*pair, metric) for name, pair in pairs.items()}
        for name, corrected in holm(p_values).items():
            found[name][metric] |= {"p": p_values[name], "p_corrected": corrected}
    return found


def paired(before: Sequence[Counts], after: Sequence[Counts]) -> tuple[list[Counts], list[Counts]]:
    """Empty on both sides where either was not measured. Raises ValueError when the two differ in length."""
    if len(before) != len(after):
        raise ValueError(f"a paired comparison needs the same questions twice: {len(before)} before, {len(after)} after")
    both = [(one, other) if one and other else ({}, {}) for one, other in zip(before, after, strict=True)]
    return [one for one, _ in both], [other for _, other in both]


def columns(counts: Sequence[Counts], name: str) -> np.ndarray:
    """(questions, 2) float64: numerator and denominator of a metric; 0 where it was not counted. Raises NotFiniteError for NaN and infinity."""
    counted = np.array([found.get(name, (0.0, 0.0)) for found in counts], dtype=np.float64).reshape(-1, 2)
    if not np.isfinite(counted).all():
        numbers = {f"question {place + 1}": sum(pair) for place, pair in enumerate(counted)}
        refuse_numbers(numbers, f"the counts of {name}", "measure these questions again")
    return counted


def interval(counted: np.ndarray, minus: np.ndarray | None = None, seed: int = 0) -> Interval:
    """The ratio of the sums of `counted`, less that of `minus`, with a bootstrap interval over questions. Both are (questions, 2), or
    (seeds, questions, 2): seeds and questions are then resampled together (a bootstrap of two levels)."""
    if not counted[..., 1].sum() or (minus is not None and not minus[..., 1].sum()):
        return dict.fromkeys(("value", "low", "high"), np.nan)
    *seeds, questions, _ = counted.shape
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(questions, np.full(questions, 1 / questions), size=RESAMPLES)
    of_seeds = [rng.multinomial(n, np.full(n, 1 / n), size=RESAMPLES) for n in seeds]

    def resampled(counted: np.ndarray) -> np.ndarray:
        sums = draws @ counted
        return ratio(np.einsum("rs,src->rc", of_seeds[0], sums) if of_seeds else sums)

    over = tuple(range(counted.ndim - 1))
    value, drawn = ratio(counted.sum(over)), resampled(counted)
    if minus is not None:
        value, drawn = value - ratio(minus.sum(over)), drawn - resampled(minus)
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    return {"value": float(value), "low": float(low), "high": float(high)}


def correlation(x: np.ndarray, y: np.ndarray, seed: int = 0) -> Interval:
    """Pearson's, of two numbers for each question, with a bootstrap interval over questions; NaN where one of them is the same for all."""
    if not len(x) or min(np.std(x), np.std(y)) < SMALLEST_STD:
        return dict.fromkeys(("value", "low", "high"), np.nan)
    n, x, y = len(x), x - np.mean(x), y - np.mean(y)
    draws = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=RESAMPLES)
    sums = np.vstack([np.ones(n), draws]) @ np.stack([x, y, x * y, x * x, y * y], axis=1)  # first of the questions themselves
    mean_x, mean_y, xy, xx, yy = sums.T / n
    variances = (xx - mean_x**2, yy - mean_y**2)
    std_x, std_y = (np.sqrt(np.where(variance > SMALLEST_STD**2, variance, np.nan)) for variance in variances)
    found = (xy - mean_x * mean_y) / (std_x * std_y)
    low, high = np.nanpercentile(found[1:], [2.5, 97.5])
    return {"value": float(found[0]), "low": float(low), "high": float(high)}


def excludes_zero(interval: Interval) -> bool:
    return interval["low"] > 0 or interval["high"] < 0


def ratio(sums: np.ndarray) -> np.ndarray:
    """(..., 2) -> (...): numerator over denominator, NaN where the denominator is 0."""
    top, bottom = sums[..., 0], sums[..., 1]
    return np.divide(top, bottom, out=np.full(np.shape(top), np.nan), where=bottom != 0)


def permutation_p(before: Sequence[Counts], after: Sequence[Counts], name: str, seed: int = 0) -> float:
    """Two-sided p of a paired permutation test, also for ratios of sums: how often the metric differs at least as much when the two results of
    each question are swapped at random. NaN where one was not measured. Raises ValueError when they differ in length."""
    first, second = (columns(counts, name) for counts in paired(before, after))
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


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """p values of several tests, corrected for their number (Holm 1979); NaN stays and does not count."""
    known = sorted((p, name) for name, p in p_values.items() if p == p)
    corrected, highest = dict(p_values), 0.0
    for rank, (p, name) in enumerate(known):
        highest = max(highest, min(1.0, p * (len(known) - rank)))
        corrected[name] = highest
    return corrected


def over_seeds(counts: Sequence[Sequence[Counts]], name: str, minus: Sequence[Sequence[Counts]] | None = None) -> Interval:
    """The metric over (seeds, questions), less that of `minus`, and `seeds`: the value of each. Raises ValueError for different shapes."""
    first, second = np.stack([columns(found, name) for found in counts]), None
    if minus is not None:
        both = [paired(found, other) for found, other in zip(counts, minus, strict=True)]
        first, second = (np.stack([columns(side, name) for side in sides]) for sides in zip(*both, strict=True))
    each = ratio(first.sum(1)) - (0.0 if second is None else ratio(second.sum(1)))
    return {**interval(first, second), "seeds": each.tolist()}


def student(values: Sequence[float]) -> Interval:
    """Mean of one value a seed, its 95 % interval by Student's t (NaN for one seed), and `seeds`: the values."""
    mean, half = float(np.mean(values)), np.nan
    if len(values) > 1:
        half = float(scipy.stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5)
    return {"value": mean, "low": mean - half, "high": mean + half, "seeds": list(values)}


def seeds_p(counts: Sequence[Sequence[Counts]], minus: Sequence[Sequence[Counts]], name: str) -> float:
    """p of a paired permutation test over questions, the seeds of a question averaged."""
    before, after = ([averaged(of_question) for of_question in zip(*found, strict=True)] for found in (minus, counts))
    return permutation_p(before, after, name)
