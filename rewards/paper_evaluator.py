"""F1-Recall, exactly as the evaluator that R1-Router releases computes it: the figure to report, so that it can be compared with the paper.

It is the token recall of the gold answer that has the best F1. Tokens are made in the manner of the VQA evaluation (Antol et al. 2015), then by
NLTK's tokenizer. Its peculiarities are kept, because they are part of the figure: `a` is not an article, a punctuation mark is deleted where a
blank stands beside one of its kind or a number has a thousands separator, and becomes a blank otherwise, and the answer to nothing is wrong.
The rewards compare answers by `rewards/metrics.py`, which has none of them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache, lru_cache
from typing import Any

import numpy as np

MARKS = ';/[]"{}()=+\\_-><@`,?!'
ARTICLES = frozenset({"an", "the"})
NUMBER_WORDS = dict(zip("zero one two three four five six seven eight nine ten".split(), map(str, range(11)), strict=True)) | {"none": "0"}
_SPELLED = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's how'd how'll how's
    isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've mustn't needn't not've o'clock oughtn't 'ow's'at shan't she'd've
    should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll someone's something'd
    something'd've something'll that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've
    weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't
    would've wouldn't wouldn't've y'all y'all'd've y'all'll you'd you'd've you'll you're you've
"""
CONTRACTIONS = {word[:i] + word[i + 1 :]: word for word in _SPELLED.split() for i, mark in enumerate(word) if mark == "'"}
"""Contractions with one apostrophe missing -> as they are spelled."""
CONTRACTIONS["somebody'd"] = "somebodyd"

_LONE_PERIOD = re.compile(r"\.(?!\d)")
_PERIODS_STRIPPED = 32
"""Of each text, the first so many: the evaluator passes a flag where the number goes."""
_THOUSANDS = re.compile(r"\d,\d")
_LEFT_OUT = ",.?!:;'\""


def f1_recall(prediction: str, answers: Iterable[str]) -> float:
    """Recall, in [0, 1], of the answer with the best F1; of equals the first. 0 for an empty prediction and for answers without tokens."""
    predicted = Counter(paper_tokens(prediction))
    best = recall = 0.0
    for answer in answers:
        wanted = paper_tokens(answer)
        shared = (predicted & Counter(wanted)).total()
        if not shared:
            continue
        precision, found = shared / predicted.total(), shared / len(wanted)
        f1 = 2 * precision * found / (precision + found)  # written like this, equals round alike
        if f1 > best:
            best, recall = f1, found
    return recall


@cache
def _tokenizer() -> Any:
    """NLTK, imported when it is first asked for: it brings SciPy along, a sixth of what every process of a run takes to start."""
    from nltk.tokenize import NLTKWordTokenizer

    return NLTKWordTokenizer()


@lru_cache(maxsize=2**16)
def paper_tokens(text: str) -> tuple[str, ...]:
    """The tokens that are compared: "The U.S. has Two, 1,250 m. peaks" -> us has 2 1250 m peaks."""
    text = text.replace("\n", " ").replace("\t", " ").strip()
    words = [NUMBER_WORDS.get(word, word) for word in _without_marks(text).lower().split()]
    kept = " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)
    return tuple(token for token in _tokenizer().tokenize(kept.lower()) if token not in _LEFT_OUT)


def range_answers(low: float, high: float) -> Sequence[str]:
    """Every number that counts as right for InfoSeek's numeric questions, whose gold is a range: steps that depend on its width, to three
    decimals, then the whole numbers in it."""
    width = high - low
    step = 1 if width >= 50 else 0.1 if width >= 5 else 0.01 if width >= 1 else 0.001
    stepped = [str(round(float(number), 3)) for number in np.arange(low, high + step, step)]
    return stepped + [str(number) for number in range(int(low), int(high + 1))]


def _without_marks(text: str) -> str:
    cleaned, thousands = text, _THOUSANDS.search(text) is not None
    for mark in MARKS:
        alone = thousands or f"{mark} " in text or f" {mark}" in text
        cleaned = cleaned.replace(mark, "" if alone else " ")
    return _LONE_PERIOD.sub("", cleaned, count=_PERIODS_STRIPPED)
