"""What an episode still has to find out, judged by what the policy can see.

A need is met when it was asked for and something other than `unknown` came back, right or wrong: the policy cannot see which readings are
wrong, and judging by the right answer teaches it to ask for ever. If an earlier need was answered wrongly, the later ones are rewritten with
what the policy heard.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from retrieval_actors.records import Passage
from rollout.records import UNKNOWN, Exchange, GoldStep

WORD = re.compile(r"[\w'’-]+")
NAMES = re.compile(r"(?<!^)(?<![.?!] )\b(?:[A-ZÀ-Þ][\w'’-]*|\d[\w.,-]*)")
SAME_QUESTION = 0.75
"""Word F1 from which two questions ask for the same thing; one wrong name of two is below it."""


def entities(gold: GoldStep) -> tuple[str, ...]:
    """Words a query must name: those given, or the capitalised words and numbers of the gold query."""
    return gold.entities or tuple(dict.fromkeys(NAMES.findall(gold.query)))


def mentions(text: str, words: Sequence[str]) -> float:
    """Fraction of `words` that stand in `text` as whole words, in any case; 1 when there are none."""
    found = sum(re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", text, re.IGNORECASE) is not None for word in words)
    return found / len(words) if words else 1.0


def asks_for(query: str, gold: GoldStep) -> bool:
    """Whether the query asks for what the gold step needs: every entity named, and mostly the same words."""
    return mentions(query, entities(gold)) == 1.0 and same_words(query, gold.query) >= SAME_QUESTION


def same_words(a: str, b: str) -> float:
    """F1 of the words of two texts, in any case and order."""
    x, y = WORD.findall(a.lower()), WORD.findall(b.lower())
    common = sum(min(x.count(word), y.count(word)) for word in set(x))
    return 2 * common / (len(x) + len(y)) if common else 0.0


def remaining_needs(gold_steps: Sequence[GoldStep], history: Sequence[Exchange]) -> list[GoldStep]:
    """The gold steps that are not met yet, in their order, rewritten with the answers that the policy heard."""
    needs, heard = list(gold_steps), list(history)
    remaining = []
    while needs:
        need = needs.pop(0)
        met = next((e for e in heard if e.answer.lower() != UNKNOWN and asks_for(e.query, need)), None)
        if met is None:
            remaining.append(need)
            continue
        heard.remove(met)
        if met.answer != need.answer:
            needs = [_rewritten(later, need.answer, met.answer) for later in needs]
    return remaining


def _rewritten(gold: GoldStep, old: str, new: str) -> GoldStep:
    pattern = re.compile(rf"(?<![\w-]){re.escape(old)}(?![\w-])")
    swap = lambda text: pattern.sub(lambda _: new, text)  # noqa: E731
    return replace(gold, query=swap(gold.query), entities=tuple(swap(entity) for entity in entities(gold)))


def askable_needs(gold_steps: Sequence[GoldStep], history: Sequence[Exchange]) -> list[GoldStep]:
    """The remaining needs that can be asked for now: those that do not wait for the answer of another one.

    A need waits while the answer of an earlier remaining need is one of the words that it must name.
    """
    remaining = remaining_needs(gold_steps, history)
    return [need for i, need in enumerate(remaining) if not any(mentions(need.query, (before.answer,)) == 1.0 for before in remaining[:i])]


def holds_answer(passage: Passage, gold: GoldStep) -> bool:
    """Whether the passage states the answer of the gold step: it is of the gold knowledge base, and holds the answer and every word that the
    query must name."""
    text = f"{passage.title} {passage.text}"
    return (
        passage.kb in ("", gold.kb)
        and not passage.error
        and mentions(text, (gold.answer,)) == 1.0
        and mentions(text, entities(gold)) == 1.0
    )
