"""Confidence against truth: the calibration, fitted on validation questions, risk over coverage, and the calibration error."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from experiments.evaluation.metrics import Counts
from experiments.evaluation.significance import Interval, interval
from rollout.confidence import Calibration, is_refusal, signals
from rollout.fit_needs import logistic_weights
from rollout.records import Trajectory

BINS = 10  # of the calibration error: equal in width
SHRINKAGE = 1e-3
SMALLEST_SPREAD = 0.01  # of a signal, as a standard deviation; a smaller one says nothing
RESAMPLES = 1000
POINTS = 40  # of the curve


def judged(confidences: Sequence[float | None], counts: Sequence[Counts]) -> np.ndarray:
    """(questions, 3) float64: confidence, whether the answer is right (an exact match), whether the question is outside all knowledge bases.
    Questions without confidence, and those of which neither is known, are left out."""
    both = [(confidence, _truth(counted)) for confidence, counted in zip(confidences, counts, strict=True)]
    found = [(confidence, *truth) for confidence, truth in both if confidence is not None and truth]
    return np.array(found, dtype=np.float64).reshape(-1, 3)


def _truth(counted: Counts) -> tuple[float, bool] | None:
    """(whether the answer is right, whether the question is outside all knowledge bases), if known."""
    (right, known), outside = counted.get("exact_match", (0.0, 0.0)), "abstention_recall" in counted
    return (right, outside) if known or outside else None


def fitted(trajectories: Sequence[Trajectory], counts: Sequence[Counts]) -> Calibration | None:
    """Logistic regression of being right on the signals, over the questions that got an answer (Platt 1999). None without any."""
    given = [
        (trajectory, _truth(counted)) for trajectory, counted in zip(trajectories, counts, strict=True) if not is_refusal(trajectory.answer)
    ]
    known = [(signals(trajectory), truth[0] > 0) for trajectory, truth in given if truth]
    if not known:
        return None
    found, right = zip(*known, strict=True)
    rows = np.array([list(each.values()) for each in found])
    scale = np.maximum(rows.std(0), SMALLEST_SPREAD)  # so that the penalty is the same for all signals
    *weights, bias = logistic_weights(rows / scale, np.array(right), SHRINKAGE)
    return Calibration(dict(zip(found[0], (weights / scale).tolist(), strict=True)), bias)


def confidence_summary(answers: np.ndarray, min_confidence: float) -> dict[str, Any]:
    """For summary.json. `answers`: of `judged`; those below `min_confidence` are refused. `aurc`: mean risk over all coverages, where risk is the
    share of wrong answers among the most confident ones (Geifman and El-Yaniv 2017). `ece`: expected calibration error of the answers other than
    `unknown`, in `BINS` bins (Guo et al. 2017)."""
    confidence, right, outside = answers.T
    given = (confidence >= min_confidence) & (confidence > 0)
    return {
        **{"questions": len(answers), "outside": int(outside.sum()), "min_confidence": min_confidence, "bins": BINS},
        "aurc": _resampled(answers, lambda some: float(risks(some).mean())),
        "ece": _resampled(answers, calibration_error),
        "coverage": interval(np.stack([given, np.ones(len(answers))], 1)),
        "risk": interval(np.stack([given * (1 - right), given], 1)),
        "outside_refused": interval(np.stack([~given * outside, outside], 1)),
        "right_answers_lost": interval(np.stack([~given * right, right], 1)),
        "curve": curve(answers),
    }


def risks(answers: np.ndarray) -> np.ndarray:
    """(questions,) float64: the share of wrong answers among the k most confident ones, for each k."""
    right = answers[np.argsort(-answers[:, 0], kind="stable"), 1]
    return 1 - np.cumsum(right) / np.arange(1, len(right) + 1)


def curve(answers: np.ndarray) -> list[tuple[float, float]]:
    """(coverage, risk), at most `POINTS` of them."""
    found, last = risks(answers), len(answers)
    return [(k / last, float(found[k - 1])) for k in np.unique(np.linspace(1, last, POINTS).astype(int)).tolist()]


def calibration_error(answers: np.ndarray) -> float:
    """Mean distance of confidence and accuracy over the bins, weighted by their answers; NaN without answers."""
    confidence, right, _ = answers[answers[:, 0] > 0].T
    place = np.minimum((confidence * BINS).astype(int), BINS - 1)
    return float(np.abs(np.bincount(place, confidence - right)).sum() / len(right)) if len(right) else float("nan")


def _resampled(answers: np.ndarray, measure: Callable[[np.ndarray], float], seed: int = 0) -> Interval:
    """The measure with its 95 % bootstrap interval over questions."""
    rng = np.random.default_rng(seed)
    drawn = [measure(answers[rng.integers(len(answers), size=len(answers))]) for _ in range(RESAMPLES)]
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    return {"value": measure(answers), "low": float(low), "high": float(high)}
