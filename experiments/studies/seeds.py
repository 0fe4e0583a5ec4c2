"""How sure a figure is that was measured with several seeds on the same questions. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from scipy.stats import t

from experiments.measures import RESAMPLES, Counts, averaged, columns, ratio
from experiments.significance import permutation_p


@dataclass(frozen=True)
class Figure:
    """An estimate over seeds with its 95 % interval; None where nothing could be measured."""

    value: float | None
    """Mean of the seeds, each question of each seed counting the same."""
    low: float | None
    high: float | None
    seeds: tuple[float | None, ...]
    """The same of each seed alone."""

    def rounded(self, digits: int = 5) -> dict[str, object]:
        """For JSON."""
        shortened = {key: None if found is None else round(found, digits) for key, found in asdict(self).items() if key != "seeds"}
        return shortened | {"seeds": [None if found is None else round(found, digits) for found in self.seeds]}


def figure(counts: Sequence[Sequence[Counts]], name: str, minus: Sequence[Sequence[Counts]] | None = None, seed: int = 0) -> Figure:
    """The measure `name` over (seeds, questions), less that of `minus`, whose i-th seed and j-th question belong to the i-th and j-th here.

    Seeds and questions are drawn anew together (a bootstrap of two levels): the interval speaks of other seeds and of other questions; with one
    seed, of other questions only. Raises ValueError when the two are not of one shape.
    """
    top = np.stack([columns(found, name) for found in counts])
    less = None if minus is None else np.stack([columns(found, name) for found in minus])
    if less is not None and less.shape != top.shape:
        raise ValueError(f"a paired difference needs the same seeds and questions: {top.shape[:2]} and {less.shape[:2]}")
    each = [_plain(ratio(top[i].sum(0)) - (0.0 if less is None else ratio(less[i].sum(0)))) for i in range(len(top))]
    if not top[..., 1].sum() or (less is not None and not less[..., 1].sum()):
        return Figure(None, None, None, tuple(each))
    seeds, questions = top.shape[:2]
    rng = np.random.default_rng(seed)
    drawn_questions = rng.multinomial(questions, np.full(questions, 1 / questions), size=RESAMPLES)
    drawn_seeds = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=RESAMPLES)

    def resampled(counted: np.ndarray) -> np.ndarray:
        by_seed = np.einsum("rq,sqc->rsc", drawn_questions, counted, optimize=True)
        return ratio(np.einsum("rs,rsc->rc", drawn_seeds, by_seed))

    value, draws = ratio(top.sum((0, 1))), resampled(top)
    if less is not None:
        value, draws = value - ratio(less.sum((0, 1))), draws - resampled(less)
    low, high = np.nanpercentile(draws, [2.5, 97.5])
    return Figure(float(value), float(low), float(high), tuple(each))


def p_value(counts: Sequence[Sequence[Counts]], minus: Sequence[Sequence[Counts]], name: str) -> float:
    """Of a paired permutation test over questions, the seeds of a question averaged."""
    together = [[averaged(of_question) for of_question in zip(*found, strict=True)] for found in (minus, counts)]
    return permutation_p(together[0], together[1], name)


def mean_over_seeds(values: Sequence[float]) -> Figure:
    """Of figures that each seed gives one of: their mean and Student's 95 % interval. With one seed there is no interval."""
    found = np.asarray(values, dtype=np.float64)
    if not len(found):
        return Figure(None, None, None, ())
    mean = float(found.mean())
    if len(found) < 2:
        return Figure(mean, None, None, (mean,))
    half = float(t.ppf(0.975, len(found) - 1) * found.std(ddof=1) / np.sqrt(len(found)))
    return Figure(mean, mean - half, mean + half, tuple(map(float, found)))


def _plain(value: np.ndarray | float) -> float | None:
    return None if np.isnan(value) else float(value)
