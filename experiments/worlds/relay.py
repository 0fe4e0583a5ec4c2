"""Relays: fictional worlds of names in which a question is a chain of relations, each held by one of several knowledge bases with opaque names.

A world has `hops` + 1 rings of names. Every relation leads from each name of a ring to a name of the next ("The baker of Kor-mu is Dan-ti."), so an
answer stands in no passage about an earlier name of its chain. Which knowledge base holds which relation is a permutation that is drawn by the
seed, alike for all splits: nothing but searching tells, and every seed has to be learned anew. A share of the facts stands in two knowledge bases,
and for every fact another knowledge base has a distractor with the same relation and name. How hard it is to give credit is set by the hops and
the knowledge bases: with 2 and 3 every way should do, with 4 and 5 few.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from string import ascii_lowercase

from experiments.worlds.atlas import SYLLABLES, belongs
from retrieval_actors.records import Passage
from rollout.records import GoldStep, Question

FIRST_SYLLABLES = [
    onset + nucleus
    for onset in "b d f g h j k l m n p r s t v w z br dr gr kr pr st tr".split()
    for nucleus in "a e i o u an or el".split()
]
RELATIONS = (
    "doctor",
    "tailor",
    "lawyer",
    "baker",
    "gardener",
    "teacher",
    "painter",
    "driver",
)  # As many as hops or knowledge bases, at most
Fact = tuple[str, str]  # (relation, name)


def query_for(relation: str, name: str) -> str:
    return f"Who is the {relation} of {name}?"


def sentence(relation: str, name: str, value: str) -> str:
    return f"The {relation} of {name} is {value}."


def permutation(seed: int, hops: int, kbs: int) -> dict[str, str]:
    """Relation -> the knowledge base that holds it. Every knowledge base holds at least one."""
    relations = RELATIONS[: max(hops, kbs)]
    shuffled = random.Random(f"relay/{seed}/permutation").sample(relations, len(relations))
    return {relation: f"kb_{ascii_lowercase[i % kbs]}" for i, relation in enumerate(shuffled)}


def fresh_names(count: int, split: str, rng: random.Random, taken: set[str]) -> list[str]:
    """Names of the split that differ in their first syllables, from each other and from those `taken`, which are added to: a name can be found by
    one token. Raises ValueError if there are not enough."""
    free = [syllable for syllable in FIRST_SYLLABLES if syllable not in taken]
    if count > len(free):
        raise ValueError(f"{count} more names beside {len(taken)}; expected at most {len(FIRST_SYLLABLES)} in all")
    first = rng.sample(free, count)
    taken.update(first)
    return [next(name for name in _with_any_ending(syllable, rng) if belongs(name, split)) for syllable in first]


def _with_any_ending(syllable: str, rng: random.Random) -> Iterator[str]:
    while True:
        yield f"{syllable}-{rng.choice(SYLLABLES)}".capitalize()


class Relay:
    """One world, fully determined by its arguments. No name of it begins like one of the world `beside` it: they can share knowledge bases."""

    def __init__(
        self, split: str, seed: int, hops: int = 4, kbs: int = 5, names: int = 16, doubled: float = 0.4, beside: Relay | None = None
    ):
        """`names`: of each ring. `doubled`: share of facts that stand in two knowledge bases. Raises ValueError for too many names."""
        self.split, self.seed, self.hops = split, seed, hops
        self.home = permutation(seed, hops, kbs)
        self.kbs = sorted(set(self.home.values()))
        self.taken: set[str] = set(beside.taken) if beside else set()
        rng = random.Random(f"relay/{split}/{seed}")
        drawn = fresh_names(names * (hops + 1), split, rng, self.taken)
        self.rings = [drawn[i : i + names] for i in range(0, len(drawn), names)]
        self.facts: dict[Fact, str] = {}
        for here, there in zip(self.rings, self.rings[1:], strict=False):
            for relation in self.home:
                self.facts |= zip(((relation, name) for name in here), rng.sample(there, names), strict=True)
        self._second = {fact: self._elsewhere(fact, rng) for fact in rng.sample(list(self.facts), round(doubled * len(self.facts)))}
        self._distractors = {fact: (self._elsewhere(fact, rng), self._another(fact, rng)) for fact in self.facts}

    def homes(self, fact: Fact) -> tuple[str, ...]:
        """The knowledge bases that hold the fact: that of its relation, then the second one of a doubled fact."""
        return (self.home[fact[0]], *filter(None, (self._second.get(fact),)))

    def _elsewhere(self, fact: Fact, rng: random.Random) -> str:
        return rng.choice([kb for kb in self.kbs if kb != self.home[fact[0]]])

    def _another(self, fact: Fact, rng: random.Random) -> str:
        """A wrong name of the ring in which the fact's value is."""
        ring = next(ring for ring in self.rings if self.facts[fact] in ring)
        return rng.choice([name for name in ring if name != self.facts[fact]])

    def passages(self, kb: str) -> Iterator[Passage]:
        """What the knowledge base holds, in a fixed order: facts, and distractors that state no fact."""
        for number, (fact, value) in enumerate(self.facts.items()):
            if kb in self.homes(fact):
                yield Passage(f"{self.split}-{number}", sentence(*fact, value))
            place, other = self._distractors[fact]
            if kb == place:
                yield Passage(f"{self.split}-{number}-met", f"The {fact[0]} of {fact[1]} once met {other}.")

    def question(self, start: str, relations: tuple[str, ...]) -> Question:
        steps, name = [], start
        for relation in relations:
            fact = relation, name
            name = self.facts[fact]
            steps.append(GoldStep(query_for(*fact), self.homes(fact), name, fact))
        text = f"Who is reached from {start} by {', then '.join(relations)}?"
        id = f"{self.split}-{self.seed}-{start}-{'-'.join(relations)}"
        return Question(id, text, (name,), None, tuple(steps), f"relay_{self.hops}x{len(self.kbs)}")

    def questions(self, count: int, seed: int = 0) -> list[Question]:
        """`count` different questions, or all of them if there are fewer; no relation occurs twice in a question."""
        rng = random.Random(f"relay/{self.split}/{self.seed}/questions/{seed}")
        count = min(count, len(self.rings[0]) * math.perm(len(self.home), self.hops))
        found: dict[str, Question] = {}
        while len(found) < count:
            question = self.question(rng.choice(self.rings[0]), tuple(rng.sample(list(self.home), self.hops)))
            found[question.id] = question
        return list(found.values())
