"""Exact match and F1 as SQuAD defines them (Rajpurkar et al. 2016, arXiv 1606.05250): what multi-hop and search-agent papers report."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterable

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def squad_tokens(text: str) -> list[str]:
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def exact_match(prediction: str, answers: Iterable[str]) -> float:
    """1 if some answer has the tokens of the prediction, in their order, else 0."""
    predicted = squad_tokens(prediction)
    return float(any(squad_tokens(answer) == predicted for answer in answers))


def f1(prediction: str, answers: Iterable[str]) -> float:
    """The best token F1 with an answer; two texts without tokens agree."""
    predicted = squad_tokens(prediction)
    return max((_f1(predicted, squad_tokens(answer)) for answer in answers), default=0.0)


def _f1(predicted: list[str], wanted: list[str]) -> float:
    if not predicted or not wanted:
        return float(predicted == wanted)
    return 2 * (Counter(predicted) & Counter(wanted)).total() / (len(predicted) + len(wanted))
