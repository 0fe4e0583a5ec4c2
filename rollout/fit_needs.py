"""Fits the weights of need_matcher.py to the paraphrases in need_files/paraphrases.yaml, and measures how well relations are recognised."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from rollout.need_matcher import SHIPPED, Calibration, NeedMatcher, masked
from rollout.needs import ASKED
from rollout.records import GoldStep

PARAPHRASES = SHIPPED.with_name("paraphrases.yaml")
NAME, YEAR = "Mola-San", "1987"  # what X and Y stand for in the paraphrases
X = re.compile(r"(?<!\S)X(?![^\W\d_])")
FALSE_MATCHES = 0.0125  # share of the hard negatives that the fit accepts; on other relations it is up to twice that
SHRINKAGE = 1e-4


def paraphrases(section: str = "", file: Path = PARAPHRASES) -> dict[str, dict[str, list[str]]]:
    """Kind -> relation -> queries, the gold one first, about NAME and YEAR. `section`: `fit`, `measured`; default: both."""
    found: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
    merged: dict[str, dict[str, list[str]]] = {}
    for part in (section,) if section else found:
        for kind, relations in found[part].items():
            for name, queries in relations.items():
                merged.setdefault(kind, {})[name] = [X.sub(NAME, " ".join(query.replace("Y", YEAR).split())) for query in queries]
    return merged


def need_of(gold: str, answer: str = "") -> GoldStep:
    return GoldStep(gold, "text", answer, tuple(name for name in (NAME, YEAR) if name in gold))


def pairs(section: str, file: Path = PARAPHRASES) -> Iterator[tuple[str, GoldStep, bool]]:
    """(paraphrase, need, whether both have the same relation). Other relations of the same kind in the section are the hard negatives."""
    for relations in paraphrases(section, file).values():
        for needed, (gold, *_) in relations.items():
            for asked, (_, *queries) in relations.items():
                yield from ((query, need_of(gold), asked == needed) for query in queries)


def relations_listed(section: str = "", file: Path = PARAPHRASES) -> dict[str, list[str]]:
    """The gold query of every relation -> its paraphrases, names masked."""
    found = [queries for relations in paraphrases(section, file).values() for queries in relations.values()]
    return {gold: others for gold, *others in ([masked(query, (NAME, YEAR)) for query in queries] for queries in found)}


def without_paraphrases(calibration: Calibration) -> Calibration:
    """The same weights without listed paraphrases, to measure them on unseen wordings."""
    return replace(calibration, relations={relation: [] for relation in calibration.relations})


def fitted(embedder: str, file: Path = PARAPHRASES) -> Calibration:
    """Logistic regression on the `fit` relations; then gamma is set so that `FALSE_MATCHES` of their hard negatives are accepted."""
    unfitted = Calibration(embedder, 0.0, 0.0, 0.0, 0.0, relations_listed(file=file))
    matcher, found = NeedMatcher(without_paraphrases(unfitted)), list(pairs("fit", file))
    matcher.prepare((query, [need]) for query, need, _ in found)
    rows, same = np.array([matcher.features(query, need) for query, need, _ in found]), np.array([same for _, _, same in found])
    *weights, _ = logistic_weights(rows, same, SHRINKAGE)
    gamma = -float(np.quantile((rows @ np.array(weights))[~same], 1 - FALSE_MATCHES))
    alpha, beta, delta = (round(weight, 3) for weight in weights)
    return Calibration(embedder, alpha, beta, delta, round(gamma, 3), unfitted.relations)


def logistic_weights(rows: np.ndarray, true: np.ndarray, shrinkage: float) -> list[float]:
    """Logistic regression of `true` (rows,) bool on `rows` (rows, features): the weights, and the bias."""
    from scipy.optimize import minimize

    def loss(weights: np.ndarray) -> float:
        scores = rows @ weights[:-1] + weights[-1]
        return float(np.logaddexp(0, np.where(true, -scores, scores)).mean() + shrinkage * (weights @ weights))

    return minimize(loss, np.zeros(rows.shape[1] + 1)).x.tolist()


def recognised(matcher: NeedMatcher, section: str, file: Path = PARAPHRASES) -> tuple[float, float]:
    """(share of the paraphrases that match their need, share of the hard negatives that match)."""
    found = list(pairs(section, file))
    matcher.prepare((query, [need]) for query, need, _ in found)
    taken = np.array([matcher.probability(query, need) >= ASKED for query, need, _ in found])
    same = np.array([same for _, _, same in found])
    return float(taken[same].mean()), float(taken[~same].mean())
