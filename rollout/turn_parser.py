"""Parses the responses of the policy, in the format of R1-Router (arXiv 2505.22095), and normalises answers and queries.

A plan turn is `<think>..</think><sub-question>..</sub-question><ret>..</ret>`, an answer or final turn `<think>..</think><answer>..</answer>`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping

from rollout.records import UNKNOWN, Action

STOP = "None"  # to stop, a plan turn writes it as the query and as the retriever
PLAN = re.compile(r"\s*<think>.*?</think>\s*<sub-question>(.*?)</sub-question>\s*<ret>(.*?)</ret>\s*", re.S)
ANSWER = re.compile(r"\s*<think>.*?</think>\s*<answer>(.*?)</answer>\s*", re.S)


def parse_plan(text: str, retrievers: Mapping[str, str]) -> Action | None:
    """The decision of a plan turn; None when it is malformed: tags missing or out of order, text around them, an empty query, an unknown retriever,
    several, or `None` in only one of the two places. `retrievers`: retriever name, as the policy writes it -> knowledge base."""
    match = PLAN.fullmatch(text)
    if not match or text.count("<sub-question>") != 1 or text.count("<ret>") != 1:
        return None
    query, retriever = match[1].strip(), match[2].strip()
    stops = (query.lower() == STOP.lower(), retriever.lower() == STOP.lower())
    if any(stops):
        return Action("", None) if all(stops) else None
    kb = {name.lower(): kb for name, kb in retrievers.items()}.get(retriever.lower())
    return Action(query, kb) if query and kb else None


def with_retriever(text: str, name: str) -> str:
    """A well-formed plan turn that asks, with another retriever name; white space around the name stays."""
    match = PLAN.fullmatch(text)
    assert match is not None
    return text[: match.start(2)] + match[2].replace(match[2].strip(), name, 1) + text[match.end(2) :]


def parse_answer(text: str) -> str | None:
    """The answer of an answer or final turn; None when the turn is malformed or the answer empty."""
    match = ANSWER.fullmatch(text)
    return match[1].strip() or None if match and text.count("<answer>") == 1 else None


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
"""Contractions without apostrophe -> with it; those that are words of their own (`its`, `well`, `were`, `ill`) are left out."""

_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_PUNCTUATION = re.compile(r"(?<!\d)\.|\.(?!\d)|(?<!\w)'|'(?!\w)|[^\w\s.']|_")


def normalise(text: str) -> str:
    """Normalised as in VQA (Antol et al. 2015): "The  U.S. has Two, 1,250 m. peaks" -> "u s has 2 1250 m peaks"."""
    text = unicodedata.normalize("NFKC", text).lower().replace("\u2019", "'")
    text = _PUNCTUATION.sub(" ", _THOUSANDS.sub("", text))
    words = (CONTRACTIONS.get(word, NUMBER_WORDS.get(word, word)) for word in text.split())
    return " ".join(word for word in words if word not in ARTICLES)


def is_unknown(answer: str) -> bool:
    """Whether the answer is `unknown` ("Unknown.", "UNKNOWN"): the passages do not hold the answer."""
    return normalise(answer) == UNKNOWN
