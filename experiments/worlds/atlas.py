"""Fictional atlases: worlds of countries with capitals, currencies, leaders, languages, flags and yearly statistics, with questions. Every seed
is another world. Its facts are spread over three knowledge bases (sentences, flag images with captions, table rows), each with distractors.
Training, validation and held-out worlds share no names, so facts cannot be memorised: the policy must ask, route, read and copy."""

from __future__ import annotations

import itertools
import random
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from experiments.worlds.flag_pictures import Flag, describe, photograph, png, random_flag
from retrieval_actors.records import Passage
from rollout.records import OUTSIDE, GoldStep, Image, Question

SYLLABLES = [onset + nucleus for onset in "b d f k l m n r s t v dr".split() for nucleus in "a e i o u an or el".split()]
SPLITS = {"train": range(0, 7), "validation": range(7, 8), "heldout": range(8, 10)}  # By the hash of a name modulo ten
RELATIONS = ("capital", "currency", "leader", "language")
TABLES = {"statistics": ("population", "area"), "economy": ("income", "debt")}
STATISTICS = tuple((table, column) for table, columns in TABLES.items() for column in columns)
YEARS = (1990, 2000, 2010)
FAMILIES = ("text_one_hop", "text_two_hop", "table", "compare", "image", "image_text", "image_table", "picture")
KNOWLEDGE_BASES = {
    "text": ("Text Retriever", "sentences about countries, cities, people, currencies and languages"),
    "text_image": ("Text Image Retriever", "pictures of flags with captions"),
    "table": ("Table Retriever", "rows of yearly tables: population, area, income, debt"),
}
STRANGERS = 50_000  # Seed of the first atlas of countries that no knowledge base holds
SMALLEST_GAP = 5  # Two values that are compared differ at least by this much


def belongs(name: str, split: str) -> bool:
    return zlib.crc32(name.encode()) % 10 in SPLITS[split]


@dataclass(frozen=True)
class Country:
    name: str
    capital: str
    currency: str
    leader: str
    language: str
    birthplace: str  # Of the leader
    flag: Flag
    values: dict[tuple[str, int], int] = field(hash=False)  # (column, year) -> two-digit value


class World:
    """Fully determined by its split and seed."""

    def __init__(self, split: str, seed: int, countries: int = 24, taken: set | None = None):
        if countries < 2:
            raise ValueError(f"a world of {countries} countries has nothing to compare; expected at least 2")
        self.split, self.seed = split, seed
        self.rng = random.Random(f"{split}/{seed}")
        taken = set() if taken is None else taken
        self.countries = [self._country(taken) for _ in range(countries)]

    def _country(self, taken: set) -> Country:
        name, capital, currency, leader, language, birthplace = (self._fresh(self._name, taken) for _ in range(6))
        values = {(column, year): self.rng.randint(10, 99) for _, column in STATISTICS for year in YEARS}
        flag = self._fresh(lambda: random_flag(self.rng), taken)
        return Country(name, capital, currency, leader, language, birthplace, flag, values)

    def _fresh(self, draw, taken: set):
        while (thing := draw()) in taken:
            pass
        taken.add(thing)
        return thing

    def _name(self) -> str:
        while not belongs(name := "-".join(self.rng.choice(SYLLABLES) for _ in range(2)).capitalize(), self.split):
            pass
        return name

    def sentences(self) -> list[str]:
        """The text knowledge base: each relation in both directions, and distractors in the same style."""
        rng, facts = random.Random(f"{self.split}/{self.seed}/sentences"), []
        for country in self.countries:
            name = country.name
            for relation in RELATIONS:
                value = getattr(country, relation)
                facts += [f"The {relation} of {name} is {value}.", f"The country whose {relation} is {value} is {name}."]
            facts += [f"The birthplace of {country.leader} is {country.birthplace}.", f"The flag of {name} was sewn in {country.capital}."]
            facts.append(f"The {rng.choice(STATISTICS)[1]} of {name} changed in {rng.choice(YEARS)}.")
        return facts

    def rows(self) -> list[str]:
        """The table knowledge base: one row a passage, with title and column names; rows of cities hold no values."""
        rows = []
        for country in self.countries:
            for table, columns in TABLES.items():
                for year in YEARS:
                    cells = " | ".join(f"{column} {country.values[column, year]}" for column in columns)
                    rows.append(f"{country.name} {table} | year {year} | {cells}")
            rows.append(f"{country.name} cities | {country.capital} | {country.birthplace}")
        return rows

    def pictures(self) -> list[tuple[str, Flag]]:
        """The text-image knowledge base: captions of flags, and of similar city banners."""
        rng = random.Random(f"{self.split}/{self.seed}/banners")
        captions = [(f"The flag with {describe(country.flag)} is of {country.name}.", country.flag) for country in self.countries]
        for country in self.countries[::4]:
            banner = random_flag(rng)
            captions.append((f"The banner with {describe(banner)} is of {country.capital}.", banner))
        return captions

    def question(self, family: str, rng: random.Random, pixels: np.random.Generator) -> Question:
        """A question of the family with its gold steps; `pixels` draws the noise of photographs. Raises ValueError for an unknown family."""
        country = rng.choice(self.countries)
        relation, (_, column), year = rng.choice(RELATIONS), rng.choice(STATISTICS), rng.choice(YEARS)
        if family == "text_one_hop":
            text, steps = f"What is the {relation} of {country.name}?", [relation_step(country, relation)]
        elif family == "text_two_hop" and rng.random() < 0.3:
            text, leader = f"What is the birthplace of the leader of {country.name}?", country.leader
            born = GoldStep(f"What is the birthplace of {leader}?", "text", country.birthplace, ("birthplace", leader))
            steps = [relation_step(country, "leader"), born]
        elif family == "text_two_hop":
            known = rng.choice([other for other in RELATIONS if other != relation])
            clue = f"the country whose {known} is {getattr(country, known)}"
            first = GoldStep(f"Which is {clue}?", "text", country.name, (known, getattr(country, known)))
            text, steps = f"What is the {relation} of {clue}?", [first, relation_step(country, relation)]
        elif family == "table":
            text, steps = f"What was the {column} of {country.name} in {year}?", [value_step(country, column, year)]
        elif family == "compare":
            rivals = [c for c in self.countries if abs(c.values[column, year] - country.values[column, year]) >= SMALLEST_GAP]
            if not rivals:  # small worlds only
                return self.question(family, rng, pixels)
            other = rng.choice(rivals)
            text = f"Which had the larger {column} in {year}, {country.name} or {other.name}?"
            steps = [value_step(country, column, year), value_step(other, column, year)]
        elif family == "image":
            text, steps = "Which country has this flag?", [flag_step(country)]
        elif family == "image_text":
            text = f"What is the {relation} of the country with this flag?"
            steps = [flag_step(country), relation_step(country, relation)]
        elif family == "image_table":
            text = f"What was the {column} of the country with this flag in {year}?"
            steps = [flag_step(country), value_step(country, column, year)]
        elif family == "picture":
            text, steps = "What does this flag show?", []
        else:
            raise ValueError(f"unknown question family {family!r}: expected one of {', '.join(FAMILIES)}")
        answer = steps[-1].answer if steps else describe(country.flag)
        if family == "compare":
            answer = max(country, other, key=lambda c: c.values[column, year]).name
        image = Image.of(png(photograph(country.flag, pixels))) if family == "picture" or family.startswith("image") else None
        key = f"{self.split}/{self.seed}/{text}/{answer}/{image.key if image else ''}"
        return Question(f"{family}-{zlib.crc32(key.encode()):08x}", text, (answer,), image, tuple(steps), family)


def relation_step(country: Country, relation: str) -> GoldStep:
    return GoldStep(f"What is the {relation} of {country.name}?", "text", getattr(country, relation), (relation, country.name))


def value_step(country: Country, column: str, year: int) -> GoldStep:
    query = f"What was the {column} of {country.name} in {year}?"
    return GoldStep(query, "table", str(country.values[column, year]), (column, country.name, str(year)))


def flag_step(country: Country) -> GoldStep:
    """No entities: the search uses the picture as well, so a wrong colour in the query does no harm."""
    return GoldStep(f"Which country has the flag with {describe(country.flag)}?", "text_image", country.name)


class Atlas:
    """Several worlds of one split that share their knowledge bases; no name and no flag occurs twice in it, nor in the one `beside` it."""

    def __init__(self, split: str, seed: int = 0, worlds: int = 4, countries: int = 24, beside: Atlas | None = None):
        self.taken: set = set(beside.taken) if beside else set()
        self.split, self.seed = split, seed
        self.worlds = [World(split, seed * 1000 + i, countries, self.taken) for i in range(worlds)]

    def passages(self, kb: str) -> Iterator[Passage]:
        """What the knowledge base holds, in a fixed order; text-image entries carry their picture as PNG."""
        for world in self.worlds:
            if kb == "text_image":
                pixels = np.random.default_rng(zlib.crc32(f"{self.split}/{world.seed}/pictures".encode()))
                for i, (caption, flag) in enumerate(world.pictures()):
                    yield Passage(f"{kb}-{world.seed}-{i}", caption, image=png(photograph(flag, pixels)))
            else:
                for i, text in enumerate(world.sentences() if kb == "text" else world.rows()):
                    yield Passage(f"{kb}-{world.seed}-{i}", text)

    def questions(self, count: int, seed: int = 0) -> list[Question]:
        """`count` questions, no two with the same id, the families in turn (a small atlas runs out of one-hop questions first)."""
        name = f"{self.split}/{self.seed}/questions/{seed}"
        rng, pixels = random.Random(name), np.random.default_rng(zlib.crc32(name.encode()))
        found: dict[str, Question] = {}
        families = itertools.cycle(FAMILIES)
        while len(found) < count:
            question = rng.choice(self.worlds).question(next(families), rng, pixels)
            found.setdefault(question.id, question)
        return list(found.values())


def questions_outside(split: str, atlas: Atlas, count: int, seed: int = 0) -> list[Question]:
    """About countries with names of the split that are neither in `atlas` nor in the one `beside` it: no knowledge base holds an answer."""
    strangers = Atlas(split, STRANGERS + seed, worlds=1, countries=4, beside=atlas)
    asked = (question for question in strangers.questions(2 * count, seed) if question.family != "picture")  # that needs no search
    return [replace(question, answers=(), gold_steps=None, family=OUTSIDE) for question in itertools.islice(asked, count)]
