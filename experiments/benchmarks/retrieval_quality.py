"""Quality of retrieval on real questions: text (2WikiMultihopQA), tables (OTT-QA), pictures (country flags).

The data are beside the repository (`../shared/data`). Embedding takes ten minutes on two cores; `quick` takes a part of everything.
"""

from __future__ import annotations

import io
import itertools
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import ImageEnhance

from experiments.benchmarks.bench_results import BenchResult
from experiments.datasets.two_wiki import read_two_wiki
from retrieval_actors.embedders.embedder import Embedder
from retrieval_actors.embedders.registry import build_embedder
from retrieval_actors.index.bm25 import BM25Index, reciprocal_rank_fusion
from retrieval_actors.pictures import decode
from retrieval_actors.records import Passage, Query
from retrieval_actors.sources.data_files import read_records
from retrieval_actors.sources.tables import Tables

DATA = Path("../shared/data")
PUBLISHED = {2: 51.8, 5: 61.9}
"""Recall@k of BM25 over all 1,000 questions (HippoRAG, arXiv 2405.14831). Here the 956 questions with certain gold passages count."""
PUBLISHED_LOOP = {2: 79.0, 5: 92.0}
"""IRCoT with bge-m3: several searches for a question, with queries written by a language model."""
TEXT_EMBEDDER = "minilm@bf16" if torch.cpu._is_avx512_bf16_supported() else "minilm"
"""The precision that is faster on this CPU; recall is equal."""
DEPTH = 100
"""Passages of each ranking that are fused."""

Ranking = list[int]
"""Positions of passages, best first."""


def quality_rows(quick: bool, data: Path = DATA) -> Iterator[BenchResult]:
    text, tables, flags = data / "2wiki_hipporag1000", data / "ottqa_dev", data / "country_flags"
    measured: dict[Path, Callable[[], list[BenchResult]]] = {
        text: lambda: two_wiki_rows(quick, text),
        tables: lambda: table_rows(quick, tables),
        flags: lambda: flag_rows(flags),
    }
    for folder, rows in measured.items():
        yield from rows() if folder.is_dir() else [BenchResult(f"not measured, no folder {folder}", math.nan, "%")]


def two_wiki_rows(quick: bool, folder: Path) -> list[BenchResult]:
    """Recall@2 and @5 of one search with the question, and of a search for each hop with a perfect planner's query. These come from the
    evidence triples, intermediate answers included: an upper bound for a policy. A question of four hops reaches at most 50 at k = 2."""
    questions, gold_ids = read_two_wiki(folder)
    reliable = {record["id"] for _, record in read_records(folder / "questions.jsonl") if record["gold_reliable"]}
    questions = [question for question in questions if question.id in reliable][: 60 if quick else None]
    corpus = (record for _, record in read_records(folder / "corpus.jsonl"))
    passages = [Passage(str(record["idx"]), record["text"], record["title"]) for record in corpus]
    if quick:
        needed = set().union(*(gold_ids[question.id] for question in questions))
        passages = [passage for row, passage in enumerate(passages) if passage.id in needed or row % 12 == 0]
    position = {passage.id: row for row, passage in enumerate(passages)}
    golds = [{position[gold] for gold in gold_ids[question.id]} for question in questions]
    asked = [question.text for question in questions]
    embedder = build_embedder(TEXT_EMBEDDER, threads=1)
    single = rank(embedder, passages, asked)
    hops = [step.query for question in questions for step in question.gold_steps or ()]
    counts = [len(question.gold_steps or ()) for question in questions]
    by_hop = rank(embedder, passages, hops)
    on = f"2Wiki, {len(questions)} questions, {len(passages):,} passages"
    rows = []
    for k, published in PUBLISHED.items():
        text_only = lexical_rankings([passage.text for passage in passages], asked, k)
        scores = {way: recall(rankings, golds, k) for way, rankings in {"BM25 (text)": text_only, **single}.items()}
        against = None if quick else published
        rows += [BenchResult.of(f"{on}: recall@{k}, {way}", score, "%", against) for way, score in scores.items()]
        best = max(scores, key=lambda way: scores[way])
        rows.append(BenchResult.of(f"{on}: recall@{k}, best single search ({best})", scores[best], "%", against, None if quick else 1.0))
        for way, rankings in by_hop.items():
            score = recall(round_robin(rankings, counts), golds, k)
            rows.append(BenchResult.of(f"{on}: recall@{k}, a search per hop, {way}", score, "%", None if quick else PUBLISHED_LOOP[k]))
    return rows


def table_rows(quick: bool, folder: Path) -> list[BenchResult]:
    """Share of questions whose gold table is among the first 1 or 10; a table has the rank of its best chunk."""
    questions = [record for _, record in read_records(folder / "questions_dev.jsonl")][: 100 if quick else None]
    needed = {record["gold_table_id"] for record in questions}
    path = folder / "tables.jsonl"
    tables = [record for _, record in read_records(path)]
    if quick:
        tables = [table for row, table in enumerate(tables) if table["table_id"] in needed or row % 12 == 0]
    chunks = [chunk for table in tables for chunk in Tables().passages(table, path, "")]
    found = rank(build_embedder(TEXT_EMBEDDER, threads=1), chunks, [record["question"] for record in questions])
    golds = [{record["gold_table_id"]} for record in questions]
    on = f"OTT-QA, {len(questions):,} questions, {len(tables):,} tables"
    rows = []
    for way, rankings in found.items():
        by_table = [list(dict.fromkeys(chunks[position].id.rpartition("#")[0] for position in ranking)) for ranking in rankings]
        rows += [BenchResult.of(f"{on}: gold table in the first {k}, {way}", recall(by_table, golds, k), "%") for k in (1, 10)]
    return rows


ALTERATIONS = {
    "JPEG of quality 40 at half the size": {"quality": 40, "scale": 0.5},
    "a twentieth cut off at each side": {"cropped": 0.05},
    "a third brighter": {"brightness": 1.33},
    "all three": {"cropped": 0.05, "brightness": 1.33, "quality": 40, "scale": 0.5},
}
"""Changes between the stored picture and that of a question."""


def altered(picture: bytes, cropped: float = 0.0, brightness: float = 1.0, quality: float = 95, scale: float = 1.0) -> bytes:
    """As JPEG of this quality; `cropped`: share of width and height that is cut off at each side."""
    image = decode(picture)
    left, top = round(image.width * cropped), round(image.height * cropped)
    image = image.crop((left, top, image.width - left, image.height - top))
    image = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
    file = io.BytesIO()
    ImageEnhance.Brightness(image).enhance(brightness).save(file, "JPEG", quality=int(quality))
    return file.getvalue()


def flag_rows(folder: Path) -> list[BenchResult]:
    """Is the nearest flag the one that was altered, by the picture alone? Territories that fly the same file are one flag."""
    captions = [record for _, record in read_records(folder / "captions.jsonl")]
    embedder = build_embedder("colour-layout+minilm", threads=1)
    pictures = [(folder / record["file"]).read_bytes() for record in captions]
    flags = [Passage(record["iso2"], record["caption"], image=picture) for record, picture in zip(captions, pictures, strict=True)]
    stored = embedder.embed_passages(flags)
    rows = []
    for name, alteration in ALTERATIONS.items():
        asked = embedder.embed_queries([Query("", altered(picture, **alteration)) for picture in pictures])
        nearest = (asked @ stored.T).argmax(axis=1)
        right = [pictures[found] == picture for found, picture in zip(nearest, pictures, strict=True)]
        rows.append(BenchResult.of(f"{len(flags)} flags, top-1 by the picture alone, {name}", 100 * float(np.mean(right)), "%"))
    return rows


def rank(embedder: Embedder, passages: Sequence[Passage], queries: Sequence[str]) -> dict[str, list[Ranking]]:
    """The DEPTH best passages for each query by BM25 over title and text, by exact inner products, and by their fusion."""
    vectors = embedder.embed_passages(passages)
    asked = embedder.embed_queries([Query(query) for query in queries])
    depth = min(DEPTH, len(passages))
    dense = [np.argsort(-(vectors @ query), kind="stable")[:depth].tolist() for query in asked]
    lexical = lexical_rankings([passage.full_text for passage in passages], queries, depth)
    hybrid = [[position for position, _ in reciprocal_rank_fusion(pair, depth)] for pair in zip(dense, lexical, strict=True)]
    return {"BM25": lexical, embedder.name: dense, f"BM25 + {embedder.name}": hybrid}


def lexical_rankings(texts: Sequence[str], queries: Sequence[str], depth: int) -> list[Ranking]:
    with tempfile.TemporaryDirectory() as folder:
        _, positions = BM25Index.build(texts, Path(folder)).search(queries, depth)
    return [[position for position in row if position >= 0] for row in positions.tolist()]


def recall(rankings: Sequence[Sequence[object]], golds: Sequence[set], k: int) -> float:
    """Percent of a question's gold passages among its first k, averaged over questions."""
    return 100 * float(np.mean([len(gold & set(ranking[:k])) / len(gold) for ranking, gold in zip(rankings, golds, strict=True)]))


def round_robin(rankings: Sequence[Ranking], hops: Sequence[int]) -> list[Ranking]:
    """One ranking for each question from those of its `hops` queries: the first of each, the second of each, and so on, without repeats."""
    bounds = np.cumsum([0, *hops])
    by_turns = (itertools.chain(*itertools.zip_longest(*rankings[start:end])) for start, end in itertools.pairwise(bounds))
    return [list(dict.fromkeys(position for position in turns if position is not None))[:DEPTH] for turns in by_turns]
