"""Whether a query asks for a need, however it is worded: names are compared as names, relations by their embeddings.

    names(e, n)    = 1 if all names of n stand in the query e, and none of another need does; else 0
    rel(e, n)      = cosine of the two questions with their names masked
    margin(e, n)   = rel(e, n) - the best cosine of e with another relation, of the other needs or of the calibration's list
    contrast(e, n) = 1 if they ask for different kinds of thing (when, where, who, how many), else 0
    p(e, n)        = names * sigmoid(alpha rel + beta margin + delta contrast + gamma)

Judged by common words, "Who directed X?" is nearer to "Who produced X?" than to "What is the director of X?". The weights are fitted on paraphrases
(need_files/paraphrases.yaml) by fit_needs.py; those of MiniLM are need_files/minilm.json.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import FiniteFloat, TypeAdapter

from retrieval_actors.embedders.registry import build_embedder
from retrieval_actors.records import Query
from rollout.records import GoldStep
from rollout.turn_parser import normalise

SHIPPED = Path(__file__).parent / "need_files/minilm.json"
_CAPITALS = "".join(filter(str.isupper, map(chr, range(0x2000))))
NAMES = re.compile(rf"(?<!^)(?<![.?!] )\b(?:[{_CAPITALS}][\w'’-]*|\d[\w.,-]*)")
SAME_RELATION = 0.85  # cosine from which a listed relation counts as the need's own
MASK, MASKED_YEAR = "something", "some year"
_ENDING = re.compile(r"(['’]s?|[.,]+)$")
_MASKS = re.compile(rf"{MASK}\b(\W+{MASK}\b)*( *\([^)]*\))?")  # adjacent names, and a title's brackets, become one mask
_KIND_OF_NAME = re.compile(rf"\bthe (film|movie|series|book|novel|song|album|company|city|town|country|band|club|team) (?={MASK})", re.I)
""""the film Foo Bar" is Foo Bar."""
_BRACKETS = re.compile(r"\s*\([^)]*\)$")
_SAME = str.maketrans("‘’‐‑–", "''---")
_YEAR = re.compile(r"1\d{3}|20\d{2}")
_KINDS = {
    "time": r"\bwhen\b|\b(what|which) (year|day|date|month|century|decade)|\bdates?\b|\bbirthday\b|\byear of\b",
    "number": r"\bhow (many|much|tall|high|long|large|big|old|far|deep|populous|thick|wide|heavy)\b|\bnumber of\b|\bpopulation\b",
    "place": r"\bwhere\b|\b(what|which) (\w+ )?(city|town|country|place|continent|village|state|region|cemetery|location)\b"
    r"|\b(place|location) of\b|\bbirthplace\b|\bheadquarters?\b|\bcapital\b|\bcontinent\b",
    "person": r"\bwho(m|se)?\b|\b(which|what) (person|man|woman|actor|writer|director|filmmaker|architect)\b",
}
KINDS = [(kind, re.compile(pattern, re.IGNORECASE)) for kind, pattern in _KINDS.items()]


@dataclass(frozen=True)
class Calibration:
    """Weights for one text embedder (a name of retrieval_actors/embedders/registry.py)."""

    embedder: str
    alpha: FiniteFloat
    beta: FiniteFloat
    delta: FiniteFloat
    gamma: FiniteFloat
    relations: dict[str, list[str]]
    """One question per relation, names masked -> its paraphrases. A query that is a listed paraphrase is replaced by that question."""


def read_calibration(path: str | Path = "") -> Calibration:
    """The calibration in a JSON file (default: that of MiniLM). Raises ValueError, one line, naming the file."""
    file = Path(path or SHIPPED)
    try:
        return TypeAdapter(Calibration).validate_json(file.read_bytes())
    except (OSError, ValueError) as error:
        raise ValueError(f"reward.need_calibration={file}: {' '.join(str(error).split())}; make one with r1-router fit-needs") from None


class NeedMatcher:
    """Loads the embedder only when a query needs it: one in the gold words, or with other names, does not."""

    def __init__(self, calibration: Calibration):
        self.calibration = calibration
        self._known: dict[str, np.ndarray] = {}
        self._first_wording = {normalise(text): first for first, others in calibration.relations.items() for text in (first, *others)}

    def probability(self, query: str, need: GoldStep, others: Sequence[GoldStep] = ()) -> float:
        """Probability that the query asks for `need`, in [0, 1]; `others`: the other needs of the question."""
        if not names_agree(query, need, others):
            return 0.0
        if normalise(query) == normalise(need.query):
            return 1.0
        rel, margin, contrast = self.features(query, need, others)
        of = self.calibration
        score = of.alpha * rel + of.beta * margin + of.delta * contrast + of.gamma
        return 1 / (1 + math.exp(-max(-30.0, min(30.0, score))))

    def features(self, query: str, need: GoldStep, others: Sequence[GoldStep] = ()) -> tuple[float, float, float]:
        """(rel, margin, contrast)."""
        names = [name for step in (need, *others) for name in names_of(step)]
        asked_text, wanted_text = self._wording(query, names), self._wording(need.query, names)
        asked, wanted = self._vector(asked_text), self._vector(wanted_text)
        rivals = (self._relations @ asked)[self._relations @ wanted < SAME_RELATION].tolist()
        for other in others:
            vector = self._vector(self._wording(other.query, names))
            if names_of(other) == names_of(need) or float(vector @ wanted) < SAME_RELATION:  # else the names tell them apart
                rivals.append(float(asked @ vector))
        rel = float(asked @ wanted)
        kinds = kind_asked_for(asked_text), kind_asked_for(wanted_text)
        return rel, rel - max(rivals, default=0.0), float(all(kinds) and kinds[0] != kinds[1])

    def prepare(self, asked: Iterable[tuple[str, Sequence[GoldStep]]]) -> None:
        """Embed in one batch all texts that `probability` will compare. `asked`: each query with the needs of its question."""
        texts: dict[str, None] = {}
        for query, needs in asked:
            if any(names_agree(query, need) and normalise(query) != normalise(need.query) for need in needs):
                names = [name for need in needs for name in names_of(need)]
                texts |= dict.fromkeys(self._wording(text, names) for text in (query, *(need.query for need in needs)))
        self._remember([text for text in texts if text not in self._known])

    def _wording(self, query: str, names: Sequence[str]) -> str:
        """The query with its names masked; for a listed paraphrase, the question of its relation."""
        text = masked(query, names)
        return self._first_wording.get(normalise(text), text)

    def _vector(self, text: str) -> np.ndarray:
        if text not in self._known:
            self._remember([text])
        return self._known[text]

    def _remember(self, texts: Sequence[str]) -> None:
        if not texts:
            return
        if len(self._known) + len(texts) > 20_000:
            self._known.clear()
        self._known.update(zip(texts, self._embedder.embed_queries([Query(text) for text in texts]), strict=True))

    @cached_property
    def _embedder(self) -> Any:
        return build_embedder(self.calibration.embedder)

    @cached_property
    def _relations(self) -> np.ndarray:
        first = list(self.calibration.relations)
        self._remember(first)
        return np.array([self._vector(text) for text in first or (MASK,)])[: len(first)]


@cache
def need_matcher(calibration: str = "") -> NeedMatcher:
    """The matcher of that calibration file (default: MiniLM's), once in a process."""
    return NeedMatcher(read_calibration(calibration))


def entities(gold: GoldStep) -> tuple[str, ...]:
    """What a query must name: the given entities without a title's brackets ("Foo Bar (1946 film)" -> "Foo Bar"), or the capitalised words and
    numbers of the gold query."""
    if gold.entities:
        return tuple(_BRACKETS.sub("", entity) or entity for entity in gold.entities)
    return tuple(dict.fromkeys(_ENDING.sub("", name) for name in names_in(gold.query)))


def names_in(text: str) -> list[str]:
    """Capitalised words, except the first of a sentence, and numbers; dashes and apostrophes of one kind."""
    return NAMES.findall(text.translate(_SAME))


def names_of(gold: GoldStep) -> tuple[str, ...]:
    """The entities that are names or numbers."""
    return tuple(entity for entity in entities(gold) if any(c.isupper() or c.isdigit() for c in entity))


def mentions(text: str, words: Sequence[str]) -> float:
    """Share of `words` that stand in `text` as whole words, in any case, with or without accents; 1 when there are none."""
    plain = _plain(text)
    found = sum(_whole(word).search(plain) is not None for word in words)
    return found / len(words) if words else 1.0


def names_agree(query: str, need: GoldStep, others: Sequence[GoldStep] = ()) -> bool:
    """Whether the query has every name of the need, and none of another need; for a need without names it must have none."""
    names = names_of(need)
    if mentions(query, names) < 1.0:
        return False
    if not names:
        return not [name for name in names_in(query) if mentions(need.query, (name,)) == 0.0]
    here = " ".join([*names, need.query])
    foreign = {name for other in others for name in names_of(other) if mentions(here, (name,)) == 0.0}
    return not any(mentions(query, (name,)) for name in foreign)


def masked(query: str, names: Sequence[str]) -> str:
    """The query with these names masked, longest first, in any spelling that `mentions` accepts: what is left is the relation."""
    for name in sorted(set(names), key=len, reverse=True):
        mask = MASKED_YEAR if _YEAR.fullmatch(name) else MASK
        letters = list(unicodedata.normalize("NFC", query))
        plain = "".join(found if len(found := _plain(c)) == 1 else c for c in letters)  # as long as `letters`
        for match in reversed(list(_whole(name).finditer(plain))):
            letters[slice(*match.span())] = mask
        query = "".join(letters)
    return _KIND_OF_NAME.sub("", _MASKS.sub(MASK, query))


def kind_asked_for(query: str) -> str:
    """`time`, `number`, `place` or `person` by the question word; empty: unclear."""
    return next((kind for kind, pattern in KINDS if pattern.search(query)), "")


def _whole(words: str) -> re.Pattern[str]:
    """Pattern for `words` as whole words in a text from `_plain`."""
    return re.compile(rf"(?<![\w-]){re.escape(_plain(words))}(?![\w-])")


def _plain(text: str) -> str:
    """Lower case, without accents; one kind of apostrophe and hyphen."""
    return "".join(c for c in unicodedata.normalize("NFKD", text.lower().translate(_SAME)) if not unicodedata.combining(c))
