"""How an answer is compared with a gold answer: VQA-style normalisation, then tokens.

For rewards. The reported F1-Recall is that of `paper_evaluator.py`, exact match and F1 are those of `squad_metrics.py`.
Normalisation follows the VQA evaluation (Antol et al. 2015): lower case, punctuation, articles, number words, contractions.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable

ARTICLES = frozenset({"a", "an", "the"})
NUMBER_WORDS = dict(
    zip(("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"), map(str, range(11)), strict=True)
)
NUMBER_WORDS["none"] = "0"
_CONTRACTED = """
    ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how's i'm i've isn't it'd it'll let's
    might've mightn't must've mustn't needn't shan't she's should've shouldn't that'll that's there'd there's they'd they'll they're they've
    wasn't we've weren't what'll what're what's when's where'd where's who'd who'll who's why'd why's won't would've wouldn't y'all you'd
    you'll you're you've
"""
CONTRACTIONS = {word.replace("'", ""): word for word in _CONTRACTED.split()}
"""Contractions written without their apostrophe; words that are also something else (`its`, `well`, `were`, `ill`) are left alone."""

_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_PUNCTUATION = re.compile(r"(?<!\d)\.|\.(?!\d)|(?<!\w)'|'(?!\w)|[^\w\s.']|_")


def normalise(text: str) -> str:
    """`text` as it is compared: "The  U.S. has Two, 1,250 m. peaks" -> "u s has 2 1250 m peaks"."""
    text = unicodedata.normalize("NFKC", text).lower().replace("\u2019", "'")
    text = _PUNCTUATION.sub(" ", _THOUSANDS.sub("", text))
    words = (CONTRACTIONS.get(word, NUMBER_WORDS.get(word, word)) for word in text.split())
    return " ".join(word for word in words if word not in ARTICLES)


def tokens(text: str) -> list[str]:
    return normalise(text).split()


def overlap(prediction: str, gold: str) -> tuple[float, float, float]:
    """(precision, recall, F1) of the tokens of `prediction` against those of `gold`, each token counted as often as it occurs.

    Two texts without tokens (both empty, both only articles) agree: (1, 1, 1)."""
    predicted, wanted = tokens(prediction), tokens(gold)
    if not predicted and not wanted:
        return 1.0, 1.0, 1.0
    shared = sum((Counter(predicted) & Counter(wanted)).values())
    if not shared:
        return 0.0, 0.0, 0.0
    precision, recall = shared / len(predicted), shared / len(wanted)
    return precision, recall, 2 * precision * recall / (precision + recall)


def token_precision(prediction: str, gold: str) -> float:
    return overlap(prediction, gold)[0]


def token_recall(prediction: str, gold: str) -> float:
    return overlap(prediction, gold)[1]


def token_f1(prediction: str, gold: str) -> float:
    return overlap(prediction, gold)[2]


def best_gold(prediction: str, answers: Iterable[str]) -> str:
    """The gold answer with the best F1; of equals, the one with the better recall, then the first. Raises ValueError without answers."""
    return max(answers, key=lambda gold: (token_f1(prediction, gold), token_recall(prediction, gold)))
