"""`real_atlas`: the countries of this world, as pictures of their flags, tables of their facts, and passages of the World Factbook.

Questions are made by template, with their gold steps, up to a chain of flag -> capital (table) -> time zone (text). Splits are by country: no
country of a held-out question occurs in a training question, while all of them stand in the knowledge bases. A fact that is asked for stands in one
of the three (but for some that repeat a name: Panama, Panama City): the passage of a capital does not say which country it is of.
"""

from __future__ import annotations

import io
import json
import random
import re
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import PIL.Image

from experiments.config import DataConfig, EvaluationConfig
from experiments.datasets.dataset import Dataset, built_from, place_of
from experiments.question_file import DataError, read_lines
from retrieval_actors.records import Passage
from rollout.records import GoldStep, Image, Question

CARDS = {
    "text": ("Text Retriever", "passages about countries and capitals: time zones, highest points, holidays, climate, industries"),
    "text_image": ("Text Image Retriever", "pictures of flags with captions"),
    "table": ("Table Retriever", "rows about countries: capital, currency, demonym, region, subregion, area"),
}
DISTRACTORS = ("Location", "Climate", "Terrain", "Industries", "National symbol(s)")
"""Fields of the Factbook that nothing asks for."""
HIGHEST = re.compile(r"highest point: ([^;(]+?) -?[\d,.]+ m\b")
HOLIDAY = re.compile(r"(?<![\w-])(\d{1,2} (?:January|February|March|April|May|June|July|August|September|October|November|December))\b")
TIME_ZONE = re.compile(r"time difference: (UTC[+-]?[\d:.]*)")
CAPITAL = re.compile(r"name: ([^;(\[]+)")
SHOWN_WIDTH = 96
"""Pixels of a flag in a question; in the knowledge base it is wider, and another file."""


@dataclass(frozen=True)
class RealCountry:
    name: str
    iso2: str
    flag: bytes
    facts: dict[str, str]
    """In the table: `capital`, `currency`, `demonym`, `area`, `region`, `subregion`; those that have one value."""
    texts: dict[str, str] = field(default_factory=dict)
    """In the text: `highest point`, `national holiday`, `time zone` (of the capital)."""
    passages: tuple[Passage, ...] = ()

    @property
    def split(self) -> str:
        place = zlib.crc32(self.name.encode()) % 10
        return "train" if place < 7 else "validation" if place == 7 else "heldout"


def load_real_atlas(data: DataConfig, evaluation: EvaluationConfig) -> Dataset:
    countries = read_countries(place_of(data, "."))
    by_split: dict[str, list[Question]] = {"train": [], "validation": [], "heldout": []}
    for country in countries:
        by_split[country.split] += questions_about(country)
    for questions in by_split.values():
        random.Random(data.seed).shuffle(questions)
    sources = tuple(
        built_from(name, data, card, {"text": _texts, "text_image": _pictures, "table": _rows}[name](countries))
        for name, card in CARDS.items()
    )
    return Dataset(
        by_split["train"][: data.train_questions],
        by_split["validation"][: evaluation.validation_questions],
        by_split["heldout"][: evaluation.questions],
        sources,
        sources,
        counts={"countries": len(countries), "questions": sum(map(len, by_split.values()))},
    )


def read_countries(folder: Path) -> list[RealCountry]:
    """Every country of world_links.jsonl that has a flag. Raises DataError with FILE:LINE."""
    table_file = folder / "mledoze_countries/countries.json"
    if not table_file.is_file():
        raise DataError(f"{table_file}: no such file; data.path has to be the folder with world_links.jsonl, country_flags and the rest")
    facts = {entry["cca3"]: entry for entry in json.loads(table_file.read_text(encoding="utf-8"))}
    passages: dict[str, list[dict[str, Any]]] = {}
    for where, record in read_lines(folder / "factbook/passages.jsonl"):
        if not {"gec", "field", "text", "id"} <= record.keys():
            raise DataError(f"{where}: found the keys {sorted(record)}, expected gec, field, id and text")
        passages.setdefault(record["gec"], []).append(record)
    countries = []
    for where, link in read_lines(folder / "world_links.jsonl"):
        try:
            flag = folder / link["flag"]
            if flag.is_file() and link["iso3"] in facts:
                entry, texts = facts[link["iso3"]], passages.get(link["factbook_gec"] or "", [])
                countries.append(_country(link["entity"], link["iso2"], flag.read_bytes(), entry, texts))
        except (KeyError, TypeError) as error:
            raise DataError(f"{where}: not a link between countries ({type(error).__name__}: {error})") from None
    return countries


def questions_about(country: RealCountry) -> list[Question]:
    """Every template that has its facts."""
    name, image = country.name, _photographed(country.flag)
    flag = GoldStep("Which country has this flag?", "text_image", name)
    made: list[tuple[str, str, Image | None, tuple[GoldStep, ...]]] = [("image", flag.query, image, (flag,))]
    for fact in ("capital", "currency", "demonym", "area"):
        if fact in country.facts:
            step = GoldStep(f"What is the {fact} of {name}?", "table", country.facts[fact], (name,))
            made.append(("table", step.query, None, (step,)))
            made.append(("image_table", f"What is the {fact} of the country with this flag?", image, (flag, step)))
    for fact in ("highest point", "national holiday"):
        if fact in country.texts:
            step = GoldStep(f"What is the {fact} of {name}?", "text", country.texts[fact], (name,))
            made.append(("text", step.query, None, (step,)))
            made.append(("image_text", f"What is the {fact} of the country with this flag?", image, (flag, step)))
    if "time zone" in country.texts:
        capital = country.facts["capital"]
        first = GoldStep(f"What is the capital of {name}?", "table", capital, (name,))
        second = GoldStep(f"What is the time zone of {capital}?", "text", country.texts["time zone"], (capital,))
        made.append(("table_text", f"What is the time zone of the capital of {name}?", None, (first, second)))
        made.append(
            ("image_table_text", "What is the time zone of the capital of the country with this flag?", image, (flag, first, second))
        )
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
        "area": f"{entry['area']:g} km2",
    }
    facts = {fact: value for fact, value in values.items() if value}
    texts, passages = {}, []
    for record in records:
        field_name, text = record["field"], record["text"]
        if field_name == "Capital":
            capital, zone = CAPITAL.search(text), TIME_ZONE.search(text)
            if capital and zone and capital[1].strip() == facts.get("capital") and capital[1].strip() != name:
                texts["time zone"] = zone[1]
                passages.append(Passage(f"{iso2}:{record['id']}", f"time zone {zone[1]}", f"{capital[1].strip()}: local time"))
            continue
        for fact, of, pattern in (("highest point", "Elevation", HIGHEST), ("national holiday", "National holiday", HOLIDAY)):
            if field_name == of and (found := pattern.search(text)):
                texts[fact] = found[1].strip()
        if field_name in ("Elevation", "National holiday", *DISTRACTORS):
            passages.append(Passage(f"{iso2}:{record['id']}", text, f"{name}: {field_name}"))
    return RealCountry(name, iso2, flag, facts, texts, tuple(passages))


def _texts(countries: list[RealCountry]):
    return lambda: [passage for country in countries for passage in country.passages]


def _pictures(countries: list[RealCountry]):
    return lambda: [Passage(country.iso2, f"The flag of {country.name}.", image=country.flag) for country in countries]


def _rows(countries: list[RealCountry]):
    """Two rows a country, title and names of the columns in each."""

    def rows() -> list[Passage]:
        found = []
        for country in countries:
            for table, columns in (
                ("people and money", ("capital", "currency", "demonym")),
                ("geography", ("region", "subregion", "area")),
            ):
                cells = " | ".join(f"{column} {country.facts[column]}" for column in columns if column in country.facts)
                found.append(Passage(f"{country.iso2}-{table}", f"countries: {table} | country {country.name} | {cells}"))
        return found

    return rows


def _photographed(flag: bytes) -> Image:
    """Smaller, and as JPEG: not the picture of the knowledge base."""
    with PIL.Image.open(io.BytesIO(flag)) as picture:
        small = picture.convert("RGBA").convert("RGB").resize((SHOWN_WIDTH, max(1, SHOWN_WIDTH * picture.height // picture.width)))
    written = io.BytesIO()
    small.save(written, "JPEG", quality=85)
    return Image.of(written.getvalue())
