"""How answers are compared: token overlap after VQA normalisation, for rewards; SQuAD's exact match and F1, for reports; and F1-Recall, the token
recall of the gold answer with the best F1, exactly as the released evaluator of R1-Router computes it: tokens of the VQA evaluation (Antol et al.
2015), then of NLTK; `a` is not an article; a mark is deleted where a blank stands beside one of its kind or a number has a thousands separator,
and becomes a blank otherwise; an empty prediction is wrong."""

import re
import string
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache, lru_cache
from typing import Any

import numpy as np

from rollout.turn_parser import normalise

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NUMBER = re.compile(r"[^\w+.-]*([+-]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?)\W*")  # with the marks around it: $1,250.5 or (-4)
Range = tuple[float, float]  # the lowest and highest right number, as numbers: SQuAD's normalisation makes 1000 of 100.0
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
# Contraction with one apostrophe missing -> its right spelling.
CONTRACTIONS = {word[:i] + word[i + 1 :]: word for word in _SPELLED.split() for i, mark in enumerate(word) if mark == "'"}
CONTRACTIONS["somebody'd"] = "somebodyd"
_LEFT_OUT = ",.?!:;'\""


def tokens(text: str) -> list[str]:
    return normalise(text).split()


def overlap(prediction: str, gold: str) -> tuple[float, float, float]:
    """(precision, recall, F1) of the tokens of `prediction` against those of `gold`, counted. Two texts without tokens agree: (1, 1, 1)."""
    predicted, wanted = tokens(prediction), tokens(gold)
    shared = (Counter(predicted) & Counter(wanted)).total()
    if not shared:
        both_empty = float(predicted == wanted)
        return both_empty, both_empty, both_empty
    precision, recall = shared / len(predicted), shared / len(wanted)
    return precision, recall, 2 * precision * recall / (precision + recall)


def best_gold(prediction: str, answers: Iterable[str]) -> str:
    """The answer with the best F1; of equals the one with the best recall, then the first."""
    return max(answers, key=lambda gold: (overlap(prediction, gold)[2], overlap(prediction, gold)[1]))


def squad_tokens(text: str) -> list[str]:
    """Tokens after SQuAD's normalisation (Rajpurkar et al. 2016, arXiv 1606.05250)."""
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def exact_match(prediction: str, answers: Iterable[str], limits: Range | None = None) -> float:
    """1 if some answer has the tokens of the prediction, in their order, else 0; with `limits`, 1 if the prediction is one number within them."""
    if limits:
        return float(_in_range(prediction, limits) == [True])
    predicted = squad_tokens(prediction)
    return float(any(squad_tokens(answer) == predicted for answer in answers))


def f1(prediction: str, answers: Iterable[str], limits: Range | None = None) -> float:
    """The best token F1 with an answer; two texts without tokens agree. With `limits` the answer is one token: any number within them."""
    if limits:
        agrees = _in_range(prediction, limits)
        return 2 * any(agrees) / (len(agrees) + 1)
    predicted, best = squad_tokens(prediction), 0.0
    for wanted in map(squad_tokens, answers):
        shared, tokens_in_both = (Counter(predicted) & Counter(wanted)).total(), len(predicted) + len(wanted)
        best = max(best, 2 * shared / tokens_in_both if tokens_in_both else 1.0)
    return best


def _in_range(text: str, limits: Range) -> list[bool]:
    """For each token (articles and lone marks are none): whether it is a number within the limits."""
    words = [word for word in _ARTICLES.sub(" ", text.lower().replace("−", "-")).split() if word.translate(_PUNCTUATION)]
    found = [_NUMBER.fullmatch(word) for word in words]
    numbers = [float(match[1].replace(",", "")) if match and match[1] else None for match in found]
    return [number is not None and limits[0] <= number <= limits[1] for number in numbers]


def f1_recall(prediction: str, answers: Iterable[str]) -> float:
    """Recall, in [0, 1], of the answer with the best F1; of equals the first. 0 for an empty prediction and for answers without tokens."""
    predicted, best, recall = Counter(paper_tokens(prediction)), 0.0, 0.0
    for answer in answers:
        wanted = paper_tokens(answer)
        if shared := (predicted & Counter(wanted)).total():
            precision, found = shared / predicted.total(), shared / len(wanted)
            score = 2 * precision * found / (precision + found)  # in this form, equal scores are rounded to the same number
            if score > best:
                best, recall = score, found
    return recall


@cache
def _tokenizer() -> Any:
    from nltk.tokenize import NLTKWordTokenizer  # imported late: with SciPy it takes a sixth of the start of every process

    return NLTKWordTokenizer()


@lru_cache(maxsize=2**16)
def paper_tokens(text: str) -> tuple[str, ...]:
    """The tokens that are compared: "The U.S. has Two, 1,250 m. peaks" -> us has 2 1250 m peaks."""
    text = text.replace("\n", " ").replace("\t", " ").strip()
    cleaned, thousands = text, re.search(r"\d,\d", text) is not None
    for mark in MARKS:
        alone = thousands or f"{mark} " in text or f" {mark}" in text
        cleaned = cleaned.replace(mark, "" if alone else " ")
    cleaned = re.sub(r"\.(?!\d)", "", cleaned, count=32)  # the evaluator passes a flag in the place of the count
    words = [NUMBER_WORDS.get(word, word) for word in cleaned.lower().split()]
    kept = " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)
    return tuple(token for token in _tokenizer().tokenize(kept.lower()) if token not in _LEFT_OUT)


def range_answers(low: float, high: float) -> Sequence[str]:
    """The right answers to a numeric question of InfoSeek, whose gold is a range: numbers in steps that depend on its width, then whole numbers."""
    width = high - low
    step = 1 if width >= 50 else 0.1 if width >= 5 else 0.01 if width >= 1 else 0.001
    stepped = [str(round(float(number), 3)) for number in np.arange(low, high + step, step)]
    return stepped + [str(number) for number in range(int(low), int(high + 1))]
