"""How good retrieval is, on real questions: text (2WikiMultihopQA), tables (OTT-QA), pictures (country flags).

The data lie beside the repository (`../shared/data`); rows whose data is not there have no value. Vectors of passages are kept in
`bench/vectors`, so that only the first run embeds them, which takes ten minutes on two cores; `quick` takes a part of everything.
"""

from __future__ import annotations

import io
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance

from experiments.benchmarks.rankings import by_words, rank, recall, round_robin
from experiments.benchmarks.row import Row
from experiments.datasets.two_wiki import read_two_wiki
from experiments.question_file import read_lines
from retrieval_actors.embedders import build_embedder
from retrieval_actors.embedders.names import fastest_text_embedder
from retrieval_actors.records import Passage, Query
from retrieval_actors.sources.source import Place
from retrieval_actors.sources.tables import Tables

DATA = Path("../shared/data")
VECTORS = Path("bench/vectors")
PUBLISHED = {2: 51.8, 5: 61.9}
"""Recall@k of BM25 on these passages, as HippoRAG (arXiv 2405.14831) gives it over all 1,000 questions; Contriever has 46.6 and 57.5 there.
Here the 956 questions count whose gold passages are certain."""
PUBLISHED_LOOP = {2: 79.0, 5: 92.0}
"""IRCoT with bge-m3: several searches for a question, their queries written by a language model as it goes along."""


def quality_rows(quick: bool, data: Path = DATA) -> Iterator[Row]:
    text = data / "2wiki_hipporag1000"
    yield from precision_rows(quick, text)
    yield from two_wiki_rows(quick, text)
    yield from table_rows(quick, data / "ottqa_dev")
    yield from flag_rows(data / "country_flags")


def precision_rows(quick: bool, folder: Path) -> list[Row]:
    """Does bfloat16 pay on this CPU? By the time that the process had, so that others on the machine do not count."""
    if not folder.is_dir():
        return [_absent("MiniLM in bfloat16 against float32", folder)]
    passages = _passages(folder)[: 64 if quick else 384]
    rates = {}
    for name in ("minilm", "minilm@bf16"):
        embedder = build_embedder(name, threads=1)
        embedder.embed_passages(passages[:16])
        began = time.process_time()
        embedder.embed_passages(passages)
        rates[name] = len(passages) / (time.process_time() - began)
    return [Row.of("MiniLM in bfloat16 against float32, one thread", rates["minilm@bf16"], "passages/s", rates["minilm"])]


def two_wiki_rows(quick: bool, folder: Path) -> list[Row]:
    """Recall@2 and @5 of one search with the question, and of a search for each hop with what a perfect planner would ask.

    The latter's queries come from the evidence triples ("What is the {relation} of {subject}?"), those in between included, which a policy
    has to find out first: what retrieval leaves possible, not what a policy reaches. A question of four hops reaches at most 50 at k = 2.
    """
    if not folder.is_dir():
        return [_absent("2Wiki recall", folder)]
    questions, gold_ids = read_two_wiki(folder)
    reliable = {record["id"] for _, record in read_lines(folder / "questions.jsonl") if record["gold_reliable"]}
    questions = [question for question in questions if question.id in reliable][: 60 if quick else None]
    passages = _passages(folder)
    if quick:
        needed = set().union(*(gold_ids[question.id] for question in questions))
        passages = [passage for row, passage in enumerate(passages) if passage.id in needed or row % 12 == 0]
    position = {passage.id: row for row, passage in enumerate(passages)}
    golds = [{position[gold] for gold in gold_ids[question.id]} for question in questions]
    asked = [question.text for question in questions]
    name = fastest_text_embedder()
    embedder = build_embedder(name, threads=1)
    single = rank(embedder, passages, asked, VECTORS)
    hops = [step.query for question in questions for step in question.gold_steps or ()]
    counts = [len(question.gold_steps or ()) for question in questions]
    steps = rank(embedder, passages, hops, VECTORS)
    on = f"2Wiki, {len(questions)} questions, {len(passages):,} passages"
    rows = []
    for k in PUBLISHED:
        text_only = by_words([passage.text for passage in passages], asked, k)
        found = {"BM25 (text)": text_only, "BM25": single.lexical, name: single.dense, f"BM25 + {name}": single.hybrid}
        scores = {way: recall(rankings, golds, k) for way, rankings in found.items()}
        against = None if quick else PUBLISHED[k]
        rows += [Row.of(f"{on}: recall@{k}, {way}", score, "%", against) for way, score in scores.items()]
        best = max(scores, key=lambda way: scores[way])
        rows.append(Row.of(f"{on}: recall@{k}, best single search ({best})", scores[best], "%", against, None if quick else 1.0))
        for way, rankings in (("BM25", steps.lexical), (name, steps.dense), (f"BM25 + {name}", steps.hybrid)):
            score = recall(round_robin(rankings, counts), golds, k)
            rows.append(Row.of(f"{on}: recall@{k}, a search per hop, {way}", score, "%", None if quick else PUBLISHED_LOOP[k]))
    return rows


def _passages(folder: Path) -> list[Passage]:
    return [Passage(str(record["idx"]), record["text"], record["title"]) for _, record in read_lines(folder / "corpus.jsonl")]


def table_rows(quick: bool, folder: Path) -> list[Row]:
    """Questions whose gold table is among the 1 or 10 first tables; a table is where its best chunk is."""
    if not folder.is_dir():
        return [_absent("OTT-QA hits", folder)]
    questions = [record for _, record in read_lines(folder / "questions_dev.jsonl")][: 100 if quick else None]
    needed = {record["gold_table_id"] for record in questions}
    tables = [record for _, record in read_lines(folder / "tables.jsonl")]
    if quick:
        tables = [table for row, table in enumerate(tables) if table["table_id"] in needed or row % 12 == 0]
    path, importer = folder / "tables.jsonl", Tables()
    chunks = [chunk for table in tables for chunk in importer.of_entry(table, Place(path, 1, path))]
    name = fastest_text_embedder()
    found = rank(build_embedder(name, threads=1), chunks, [record["question"] for record in questions], VECTORS)
    golds = [{record["gold_table_id"]} for record in questions]
    on = f"OTT-QA, {len(questions):,} questions, {len(tables):,} tables"
    rows = []
    for way, rankings in (("BM25", found.lexical), (name, found.dense), (f"BM25 + {name}", found.hybrid)):
        by_table = [list(dict.fromkeys(chunks[position].id.rpartition("#")[0] for position in ranking)) for ranking in rankings]
        rows += [Row.of(f"{on}: gold table in the first {k}, {way}", recall(by_table, golds, k), "%") for k in (1, 10)]
    return rows


def flag_rows(folder: Path) -> list[Row]:
    """Is the nearest of 255 flags the one that was altered, by the picture alone? Territories that fly the same file are one flag."""
    if not folder.is_dir():
        return [_absent("flags, top-1", folder)]
    captions = [record for _, record in read_lines(folder / "captions.jsonl")]
    embedder = build_embedder("colour-layout+minilm", threads=1)
    pictures = [(folder / record["file"]).read_bytes() for record in captions]
    flags = [Passage(record["iso2"], record["caption"], image=picture) for record, picture in zip(captions, pictures, strict=True)]
    stored = embedder.embed_passages(flags)
    rows = []
    for how, alter in ALTERATIONS.items():
        asked = embedder.embed_queries([Query("", altered(picture, alter)) for picture in pictures])
        nearest = (asked @ stored.T).argmax(axis=1)
        right = [pictures[found] == picture for found, picture in zip(nearest, pictures, strict=True)]
        rows.append(Row.of(f"{len(flags)} flags, top-1 by the picture alone, {how}", 100 * float(np.mean(right)), "%"))
    return rows


@dataclass(frozen=True)
class Alteration:
    """What happens to a picture between a camera and a question."""

    cropped: float = 0.0
    """Share of width and height that is cut off at each side."""
    brightness: float = 1.0
    quality: int = 95
    """Of the JPEG that it becomes."""
    scale: float = 1.0


ALTERATIONS = {
    "JPEG of quality 40 at half the size": Alteration(quality=40, scale=0.5),
    "a twentieth cut off at each side": Alteration(cropped=0.05),
    "a third brighter": Alteration(brightness=1.33),
    "all three": Alteration(cropped=0.05, brightness=1.33, quality=40, scale=0.5),
}


def altered(picture: bytes, how: Alteration) -> bytes:
    """JPEG bytes; transparent parts become white."""
    image = Image.open(io.BytesIO(picture)).convert("RGBA")
    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    width, height = image.size
    left, top = round(width * how.cropped), round(height * how.cropped)
    image = image.crop((left, top, width - left, height - top))
    image = image.resize((max(1, round(image.width * how.scale)), max(1, round(image.height * how.scale))))
    file = io.BytesIO()
    ImageEnhance.Brightness(image).enhance(how.brightness).save(file, "JPEG", quality=how.quality)
    return file.getvalue()


def _absent(name: str, folder: Path) -> Row:
    return Row(f"{name}: not measured, no folder {folder}", math.nan, "%")
