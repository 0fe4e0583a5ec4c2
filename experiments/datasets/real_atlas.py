"""`real_atlas`: the countries of this world, as pictures of their flags, tables of their facts, and passages of the World Factbook.
Questions are made by template, with their gold steps, up to a chain of flag -> capital (table) -> time zone (text). Splits are by country;
the knowledge bases hold all countries. Each fact is in one knowledge base only, except where names repeat (Panama, Panama City): the passage
of a capital does not name its country.

`atlas_2wiki`: the real atlas and 2WikiMultihopQA as one data set with three knowledge bases; both kinds of text are in one of them.

Questions are balanced, because a policy that sees one kind of first route more often than the others learns that route for every question:
in training, a quarter each begin with a picture, with a table, with a text of the atlas, and with a text of 2Wiki. Among those of one kind the
families take turns, so that chains are as frequent as single facts. Validation and held-out questions are half atlas, half 2Wiki. The atlas is
split by country, 2Wiki by the id of the question, so the parts stay apart however many questions are asked for."""

import functools
import io
import random
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

from experiments.config import DataConfig, EvaluationConfig
from experiments.datasets.dataset import Dataset, built_from, made_of_records, place_of
from experiments.datasets.two_wiki import load_two_wiki
from experiments.worlds.atlas import belongs
from retrieval_actors.pictures import decode
from retrieval_actors.records import Passage
from retrieval_actors.sources.data_files import read_records
from rollout.records import GoldStep, Image, Question, RecordedTurn

CARDS = {
    "text": ("Text Retriever", "passages about countries and capitals: time zones, highest points, holidays, climate, industries"),
    "text_image": ("Text Image Retriever", "pictures of flags with captions"),
    "table": ("Table Retriever", "rows about countries: capital, currency, demonym, region, subregion, area"),
}
TABLES = {"people and money": ("capital", "currency", "demonym"), "geography": ("region", "subregion", "area")}
DISTRACTORS = ("Location", "Climate", "Terrain", "Industries", "National symbol(s)")  # Fields of the Factbook that nothing asks for
MONTHS = "January|February|March|April|May|June|July|August|September|October|November|December"
IN_TEXT = {  # Field of the Factbook -> the fact that questions ask for, and its pattern
    "Elevation": ("highest point", re.compile(r"highest point: ([^;(]+?) -?[\d,.]+ m\b")),
    "National holiday": ("national holiday", re.compile(rf"(?<![\w-])(\d{{1,2}} (?:{MONTHS}))\b")),
}
TIME_ZONE = re.compile(r"time difference: (UTC[+-]?[\d:.]*)")
CAPITAL = re.compile(r"name: ([^;(\[]+)")
MOST_FACTS = 3  # That a question needs, as an episode has three searches; the questions of 2Wiki that need more are left out
MANY = 10**6
ALL = EvaluationConfig(questions=MANY, validation_questions=MANY)
SHOWN_WIDTH = 96  # Pixels of a flag in a question; in the knowledge base it is wider, and another file


@dataclass(frozen=True)
class RealCountry:
    name: str
    iso2: str
    flag: bytes
    facts: dict[str, str]  # In the table: `capital`, `currency`, `demonym`, `area`, `region`, `subregion`; those that have one value
    texts: dict[str, str]  # In the text: `highest point`, `national holiday`, `time zone` (of the capital)
    passages: dict[str, list[Passage]]  # Knowledge base -> what it holds of this country; of the table two rows, with title and columns


def load_real_atlas(data: DataConfig, evaluation: EvaluationConfig) -> Dataset:
    countries = read_countries(place_of(data, "."))
    flags = Counter(country.flag for country in countries)  # No picture tells apart those that fly the same

    def drawn(split: str, most: int) -> list[Question]:
        questions = [
            question
            for country in countries
            for question in questions_about(country)
            if belongs(country.name, split) and (question.image is None or flags[country.flag] == 1)
        ]
        random.Random(data.seed).shuffle(questions)
        return questions[:most]

    train, validation = drawn("train", data.train_questions), drawn("validation", evaluation.validation_questions)

    def passages(kb: str) -> list[Passage]:
        return [passage for country in countries for passage in country.passages[kb]]

    sources = tuple(built_from(kb, data, card, functools.partial(passages, kb)) for kb, card in CARDS.items())
    return Dataset(train, validation, drawn("heldout", evaluation.questions), sources, sources)


def read_countries(folder: Path) -> list[RealCountry]:
    """Every country of world_links.jsonl that has a flag. Raises DataError with FILE:LINE."""
    facts = {entry["cca3"]: entry for _, entry in read_records(folder / "mledoze_countries/countries.json")}
    passages: dict[str, list[dict[str, Any]]] = {}
    for _, record in read_records(folder / "factbook/passages.jsonl"):
        passages.setdefault(record["gec"], []).append(record)

    def country(where: str, link: dict[str, Any]) -> RealCountry | None:
        flag = folder / link["flag"]
        if not flag.is_file() or link["iso3"] not in facts:
            return None
        texts = passages.get(link.get("factbook_gec", ""), [])
        return _country(link["entity"], link["iso2"], flag.read_bytes(), facts[link["iso3"]], texts)

    return [found for found in made_of_records(folder / "world_links.jsonl", "a link between countries", country) if found]


def questions_about(country: RealCountry) -> list[Question]:
    """Every template that has its facts."""
    name, image = country.name, _photographed(country.flag)
    flag = GoldStep("Which country has this flag?", "text_image", name)
    made: list[tuple[str, str, Image | None, tuple[GoldStep, ...]]] = [("image", flag.query, image, (flag,))]
    for kb, known, asked in (
        ("table", country.facts, ("capital", "currency", "demonym", "area")),
        ("text", country.texts, [fact for fact, _ in IN_TEXT.values()]),
    ):
        for fact in (fact for fact in asked if fact in known):
            step = GoldStep(f"What is the {fact} of {name}?", kb, known[fact], (name,))
            made.append((kb, step.query, None, (step,)))
            made.append((f"image_{kb}", f"What is the {fact} of the country with this flag?", image, (flag, step)))
    if "time zone" in country.texts:
        capital = country.facts["capital"]
        first = GoldStep(f"What is the capital of {name}?", "table", capital, (name,))
        second = GoldStep(f"What is the time zone of {capital}?", "text", country.texts["time zone"], (capital,))
        made.append(("table_text", f"What is the time zone of the capital of {name}?", None, (first, second)))
        pictured = "What is the time zone of the capital of the country with this flag?"
        made.append(("image_table_text", pictured, image, (flag, first, second)))
    return [
        Question(f"{country.iso2}-{number}", text, (steps[-1].answer,), shown, steps, family)
        for number, (family, text, shown, steps) in enumerate(made)
    ]


def _country(name: str, iso2: str, flag: bytes, entry: dict[str, Any], records: list[dict[str, Any]]) -> RealCountry:
    currencies = [currency["name"] for currency in entry["currencies"].values()] if entry["currencies"] else []
    values = {
        "capital": entry["capital"][0] if len(entry["capital"]) == 1 else "",
        "currency": currencies[0] if len(currencies) == 1 else "",
        "subregion": entry["subregion"],
        "demonym": entry["demonyms"]["eng"]["m"],
        "region": entry["region"],
        "area": f"{entry['area']:.10g} km2",
    }
    facts = {fact: value for fact, value in values.items() if value}
    texts: dict[str, str] = {}
    passages: dict[str, list[Passage]] = {"text": [], "text_image": [Passage(iso2, f"The flag of {name}.", image=flag)], "table": []}
    for record in records:
        id, of, text = f"{iso2}:{record['id']}", record["field"], record["text"]
        if of == "Capital":
            capital, zone = CAPITAL.search(text), TIME_ZONE.search(text)
            if capital and zone and capital[1].strip() == facts.get("capital") != name:
                texts["time zone"] = zone[1]
                passages["text"].append(Passage(id, f"time zone {zone[1]}", f"{facts['capital']}: local time"))
        elif of in (*IN_TEXT, *DISTRACTORS):
            fact, pattern = IN_TEXT.get(of, ("", None))
            if pattern and (found := pattern.search(text)):
                texts[fact] = found[1].strip()
            passages["text"].append(Passage(id, text, f"{name}: {of}"))
    for table, columns in TABLES.items():
        cells = " | ".join(f"{column} {facts[column]}" for column in columns if column in facts)
        passages["table"].append(Passage(f"{iso2}-{table}", f"countries: {table} | country {name} | {cells}"))
    return RealCountry(name, iso2, flag, facts, texts, passages)


def _photographed(flag: bytes) -> Image:
    """A smaller JPEG of the flag: another file than the one in the knowledge base."""
    picture = decode(flag)
    small = picture.resize((SHOWN_WIDTH, max(1, SHOWN_WIDTH * picture.height // picture.width)))
    written = io.BytesIO()
    small.save(written, "JPEG", quality=85)
    return Image.of(written.getvalue())


def load_atlas_2wiki(data: DataConfig, evaluation: EvaluationConfig) -> Dataset:
    folder = place_of(data, ".")
    atlas = load_real_atlas(replace(data, path=str(folder), train_questions=MANY), ALL)
    wiki = load_two_wiki(replace(data, path=str(folder / "2wiki_hipporag1000")), ALL)
    answerable = [question for question in _named("2wiki", wiki.heldout) if len(question.gold_steps or ()) <= MOST_FACTS]

    def of_wiki(split: str) -> list[Question]:
        return families_in_turn(question for question in answerable if belongs(question.id, split))

    def halves(split: str, of_atlas: list[Question], most: int) -> list[Question]:
        return [*families_in_turn(of_atlas)[: most - most // 2], *of_wiki(split)[: most // 2]]

    kinds = [of_wiki("train")]
    for kb in atlas.training_kbs:
        kinds.append(families_in_turn(q for q in _named("atlas", atlas.train) if kb.name in (q.gold_steps or ())[0].kbs))
    each = min(data.train_questions // len(kinds), *map(len, kinds))
    train = [question for kind in kinds for question in kind[:each]]
    validation = halves("validation", _named("atlas", atlas.validation), evaluation.validation_questions)
    heldout = halves("heldout", _named("atlas", atlas.heldout), evaluation.questions)
    first, *others = atlas.training_kbs
    both = (first, *wiki.training_kbs)

    def texts() -> list[Passage]:
        return [passage for source in both if source.passages for passage in source.passages()]

    text = replace(first, description="; ".join(source.description for source in both), passages=texts)
    gold_passages = {f"2wiki-{id}": found for id, found in wiki.gold_passages.items()}
    return Dataset(train, validation, heldout, (text, *others), (text, *others), gold_passages)


def families_in_turn(questions: Iterable[Question]) -> list[Question]:
    """The first question of each family, then the second ones, ...: equally many of each, until a family is used up."""
    families: dict[str, list[Question]] = {}
    for question in questions:
        families.setdefault(question.family, []).append(question)
    return [question for row in zip_longest(*families.values()) for question in row if question is not None]


def _named(source: str, questions: Iterable[Question | RecordedTurn]) -> list[Question]:
    return [replace(q, id=f"{source}-{q.id}", family=f"{source}_{q.family}") for q in questions if isinstance(q, Question)]
