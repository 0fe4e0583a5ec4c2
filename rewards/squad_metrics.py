"""Exact match and F1 as SQuAD defines them (Rajpurkar et al. 2016, arXiv 1606.05250): what multi-hop and search-agent papers report.

Where the gold is a range of numbers, numbers are compared as numbers: SQuAD's normalisation strips decimal points, and 100.0 became 1000.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterable

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")

_NUMBER = re.compile(r"[^\w+.-]*([+-]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?)\W*")
"""A word that is a number, with the marks around it, such as $1,250.5 or (-4)."""
Range = tuple[float, float]
"""The lowest and the highest right number."""


def squad_tokens(text: str) -> list[str]:
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def exact_match(prediction: str, answers: Iterable[str], limits: Range | None = None) -> float:
    """1 if some answer has the tokens of the prediction, in their order, else 0; with `limits`, 1 if the prediction is one number within them."""
    if limits:
        return float(_in_range(prediction, limits) == [True])
    predicted = squad_tokens(prediction)
    return float(any(squad_tokens(answer) == predicted for answer in answers))


def f1(prediction: str, answers: Iterable[str], limits: Range | None = None) -> float:
    """The best token F1 with an answer; two texts without tokens agree. With `limits` the answer is one token, with which a number within them
    agrees."""
    if limits:
        agrees = _in_range(prediction, limits)
        return 2 * any(agrees) / (len(agrees) + 1)
    predicted = squad_tokens(prediction)
    return max((_f1(predicted, squad_tokens(answer)) for answer in answers), default=0.0)


def _f1(predicted: list[str], wanted: list[str]) -> float:
    if not predicted or not wanted:
        return float(predicted == wanted)
    return 2 * (Counter(predicted) & Counter(wanted)).total() / (len(predicted) + len(wanted))


def _in_range(text: str, limits: Range) -> list[bool]:
    """Of each token (articles and lone marks are none): whether it is a number within the limits."""
    words = [word for word in _ARTICLES.sub(" ", text.lower().replace("−", "-")).split() if word.translate(_PUNCTUATION)]
    found = [_NUMBER.fullmatch(word) for word in words]
    numbers = [float(match[1].replace(",", "")) if match and match[1] else None for match in found]
    return [number is not None and limits[0] <= number <= limits[1] for number in numbers]
