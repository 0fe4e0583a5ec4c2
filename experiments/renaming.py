"""The same turn about other countries: what is read has to be read, because what was learned by heart no longer holds.

An embedded atlas serves thousands of turns. A policy that meets its few hundred countries that often remembers them: readings were right to
the last token .87 of the time at the end of one atlas and .75 at the start of the next. New syllables for old ones keep what makes neighbours
alike, the syllables that they share.
"""

from __future__ import annotations

import random
import re
from dataclasses import replace

from experiments.atlas import SYLLABLES, belongs
from experiments.demonstration import Demonstration

NAME = re.compile(r"\b([A-Z][a-z]*)-([a-z]+)\b")
VALUE = re.compile(r"\b[1-9]\d\b")
"""Of a statistic: two digits. Years have four."""


def renamed(turn: Demonstration, rng: random.Random, split: str = "train") -> Demonstration:
    """Every syllable becomes another one, the same everywhere in the turn, and so do the values of tables in an answer turn.

    The new names are of the split as well. Values of final turns stay: which one is larger matters there.
    """
    text = f"{turn.message.user}\n{turn.response}"
    names = sorted({match[0] for match in NAME.finditer(text) if match[1].lower() in SYLLABLES and match[2] in SYLLABLES})
    old = sorted({syllable.lower() for name in names for syllable in name.split("-")})
    while True:
        new = dict(zip(old, rng.sample(SYLLABLES, len(old)), strict=True))
        others = {name: "-".join(new[syllable] for syllable in name.lower().split("-")).capitalize() for name in names}
        if all(belongs(name, split) for name in others.values()):
            break
    values: dict[str, str] = {}
    if turn.kind == "answer":
        seen = sorted(set(VALUE.findall(text)))
        values = dict(zip(seen, map(str, rng.sample(range(10, 100), len(seen))), strict=True))

    def rewrite(text: str) -> str:
        text = NAME.sub(lambda match: others.get(match[0], match[0]), text)
        return VALUE.sub(lambda match: values.get(match[0], match[0]), text)

    return replace(turn, message=replace(turn.message, user=rewrite(turn.message.user)), response=rewrite(turn.response))
