"""A small folder of invented countries and people in the format of the published data that `atlas_2wiki` joins."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import PIL.Image

COUNTRIES = [
    f"{first}{second}" for first in ("Kar", "Lom", "Nis", "Pol", "Rud", "Tam") for second in ("avia", "elia", "istan", "oria", "umar")
]
FILMS = [
    f"The {what} of {who}" for what in ("House", "Road", "Song", "Winter") for who in ("Adam", "Berta", "Cyril", "Dora", "Egon", "Frida")
]


def made_world(folder: Path) -> Path:
    """30 countries, and 24 films with a question about each director's birth, one in four with a comparison or with four facts."""
    links, facts, fields = [], [], []
    flags = folder / "country_flags"
    flags.mkdir(parents=True)
    for number, name in enumerate(COUNTRIES):
        iso2, colour = f"{chr(65 + number // 26)}{chr(65 + number % 26)}", (37 * number % 256, 91 * number % 256, 151 * number % 256)
        drawn = io.BytesIO()
        PIL.Image.new("RGB", (60, 40), colour).save(drawn, "PNG")
        (flags / f"{iso2}.png").write_bytes(drawn.getvalue())
        links.append({"entity": name, "iso2": iso2, "iso3": f"{iso2}X", "factbook_gec": iso2, "flag": f"country_flags/{iso2}.png"})
        money = {"XXX": {"name": f"{name[:3]}ese crown", "symbol": "c"}}
        demonym = {"eng": {"m": f"{name}n", "f": f"{name}n"}}
        place = {"region": "Utopia", "subregion": f"Utopia {number % 4}", "area": 1000.0 * number + 1_000_000}
        facts.append({"cca3": f"{iso2}X", "capital": [f"Port {name[:4]}"], "currencies": money, "demonyms": demonym, **place})
        texts = {
            "Elevation": f"highest point: Mount {name[::-1].capitalize()} {1000 + number} m",
            "Capital": f"name: Port {name[:4]}; time difference: UTC+{number % 12} (ahead of Washington)",
            "Climate": "mild, with rain in winter",
        }
        fields += [{"id": f"{iso2}#{of}", "gec": iso2, "country": name, "field": of, "text": text} for of, text in texts.items()]
    corpus, questions = [], []
    for number, film in enumerate(FILMS):
        director, town, year = f"Xaver {film.split()[1]}{film.split()[3].lower()}", f"Bad {film.split()[3]}{number}", 1900 + number
        corpus.append({"title": film, "text": f"{film} is a film of {year} directed by {director}."})
        corpus.append({"title": director, "text": f"{director} was a director of films. He was born in {town} in 1870."})
        evidence = [[film, "director", director], [director, "place of birth", town]]
        text, answer, kind = f"Where was the director of film {film} born?", town, "compositional"
        if number % 4 == 1:
            other, kind, answer = FILMS[number - 1], "comparison", film
            evidence = [[film, "publication date", str(year)], [other, "publication date", str(year - 1)]]
            text = f"Which film came out later, {film} or {other}?"
        elif number % 4 == 3:
            evidence, kind = evidence * 2, "bridge_comparison"
        gold = {"evidence": evidence, "type": kind, "gold_passage_idx": [2 * number, 2 * number + 1]}
        questions.append({"id": f"w{number}", "question": text, "answer": answer, **gold})
    write(folder / "world_links.jsonl", links)
    write(folder / "factbook/passages.jsonl", fields)
    write(folder / "mledoze_countries/countries.json", facts)
    write(folder / "2wiki_hipporag1000/corpus.jsonl", [{"idx": number, **passage} for number, passage in enumerate(corpus)])
    write(folder / "2wiki_hipporag1000/questions.jsonl", questions)
    return folder


def write(path: Path, records: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = "\n".join(json.dumps(record) for record in records)
    path.write_text(json.dumps(records) if path.suffix == ".json" else lines + "\n")
