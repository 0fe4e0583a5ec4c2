"""`r1-router kb build | search | status`: build, search and show knowledge bases; see docs/05_knowledge_bases.md."""

import dataclasses
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from experiments.cluster.kb_status import card_lines, find_running, retrieval_lines
from experiments.cluster.ray_session import check_start, join_ray, start_ray
from experiments.command_line.entry_point import STOPPED, command
from experiments.command_line.progress import bars
from experiments.command_line.terminal import Console
from experiments.config import RunConfigError, TrainConfig
from experiments.config.reading import is_setting, read_settings
from retrieval_actors.actors.memory_plan import plan_memory
from retrieval_actors.actors.start_actors import running_retrievals, start_retrieval
from retrieval_actors.build.from_passages import SKIPPED
from retrieval_actors.build.from_source import BuildSettings, build_from_source
from retrieval_actors.config import RetrievalConfig
from retrieval_actors.embedders.registry import check_embedder_name
from retrieval_actors.folder_lock import hold
from retrieval_actors.knowledge_base import KnowledgeBase
from retrieval_actors.pictures import read_picture
from retrieval_actors.records import Passage, Query
from retrieval_actors.sources.passage_lines import PassageLines
from retrieval_actors.sources.read_passages import Reading, find_source

FIRST = 5  # of a list that may be long
SAMPLED_IDS = 1000  # of a shard


@dataclass
class SearchSettings:
    k: int = 5
    """Passages to show."""
    image: str = ""
    """Path of a PNG or JPEG that the query is about."""


def planned(source: str, out: str, arguments: Sequence[str]) -> tuple[Reading, Path, BuildSettings]:
    """(source, output folder, settings). Raises ValueError, one line, for a setting that is unknown or not allowed."""
    named = dict(argument.partition("=")[::2] for argument in arguments)
    name = named.get("source", "auto")
    kind = find_source(PassageLines.name if name == "auto" and "text_from" in named else name, source)
    # The fields of the source are settings, too: a misspelt key is compared with all of them.
    extra = [(field.name, field.type, dataclasses.field(default=field.default)) for field in dataclasses.fields(kind)]
    settings: Any = read_settings(dataclasses.make_dataclass("Settings", extra, bases=(BuildSettings,)), arguments)
    if settings.embedder:
        check_embedder_name(settings.embedder)
    filled = kind(**{key: getattr(settings, key) for key, *_ in extra})
    # Absolute, as workers may have another working directory.
    reading = Reading(Path(source).absolute(), filled, settings.window_words, settings.window_stride, settings.limit)
    return reading, Path(out).absolute(), settings


def build(source: str, out: str, arguments: Sequence[str], console: Console) -> int:
    """`r1-router kb build SOURCE OUT [source=NAME] [key=value ...]`: build a knowledge base folder from a source of passages.

    An interrupted build is resumed by the same command. What SOURCE may be: docs/05_knowledge_bases.md.

        r1-router kb build passages.jsonl kbs/text name=text
    """
    started = time.perf_counter()
    reading, folder, settings = planned(source, out, arguments)
    check_start(TrainConfig())
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # no warnings about pools of actors
    try:
        with hold(folder), start_ray(TrainConfig()), bars(console) as progress:
            built = build_from_source(reading, folder, settings, progress, lambda line: console.print(line, soft_wrap=True))
    except KeyboardInterrupt:
        console.print("interrupted: the same command continues where it was")
        return STOPPED
    show(console, card_lines(built.base))
    rate = built.embedded / max(built.embedding_seconds, 1e-9)
    console.print(f"  built in {time.perf_counter() - started:.1f} s: embedded {built.embedded:,} passages, {rate:,.0f} passages/s")
    console.print(f"  resumed: {built.resumed_chunks:,} of {built.chunks:,} chunks were embedded before")
    console.print("  a sample of its passages:")
    show(console, map(sample_line, sample(built.base)))
    why = f" (empty, or of a kind that source={reading.source.name} leaves out); the first:" if built.left_out else ""
    console.print(f"  left out: {len(built.left_out):,} records without a passage{why}")
    show(console, (f"    {place}" for place in built.left_out[:FIRST]))
    if files := reading.source.left_out(reading.path):
        console.print(f"  not read: {len(files):,} of the files and folders in {reading.path.name}; the first:")
        show(console, (f"    {name}: {reason}" for name, reason in files[:FIRST]))
    if built.broken:
        console.print(f"  skipped: {len(built.broken):,} broken records, all of them in {SKIPPED}; the first:")
        show(console, (f"    {record['place']}: {record['reason']}" for record in built.broken[:FIRST]))
    return 0


def sample(base: KnowledgeBase) -> list[Passage]:
    """Three passages, of a first, a middle and a last file where ids tell files apart; else those at the begin, in the middle and at the end."""
    tables = [base.shard(number).table for number in range(len(base.manifest["shards"]))]
    rows = [(number, row) for number, table in enumerate(tables) for row in range(0, len(table), len(table) // SAMPLED_IDS + 1)]
    of_files: dict[str, tuple[int, int]] = {}
    for number, row in rows:
        of_files.setdefault(tables[number]["id"][row].as_py().rpartition("#")[0], (number, row))
    found = list(of_files.values()) if len(of_files) > 2 else rows
    chosen = [found[place] for place in sorted({0, len(found) // 2, len(found) - 1})]
    return [Passage(**tables[number].slice(row, 1).to_pylist()[0]) for number, row in chosen]


def sample_line(passage: Passage, most: int = 160) -> str:
    """At most two lines of a terminal."""
    text = f"{passage.id}: {'[picture] ' if passage.image else ''}{passage.full_text}"
    return f"    {text}" if len(text) <= most else f"    {text[:most].rsplit(' ', 1)[0]} ..."


def show(console: Console, lines: Iterable[str]) -> None:
    for line in lines:
        console.print(line, soft_wrap=True)


def status(folders: Sequence[str], console: Console) -> int:
    """`r1-router kb status [FOLDER ...]`: show the knowledge bases that run on this cluster, or what folders hold and need.

    r1-router kb status kbs/text
    """
    if folders:
        bases = [KnowledgeBase.open(folder) for folder in folders]
        for base in bases:
            show(console, card_lines(base))
        show(console, plan_memory(bases, 1, [psutil.virtual_memory().available], shared_mib=RetrievalConfig().shared_mib).lines())
        return 0
    with join_ray():
        found = running_retrievals()
        for name, log in found.items():
            show(console, retrieval_lines(name, log))
    if not found:
        console.print("no knowledge base runs here: training, evaluation and the service start their own")
    return 0


def search(where: str, text: str, settings: SearchSettings, console: Console) -> int:
    """`r1-router kb search FOLDER_OR_NAME QUERY [key=value ...]`: search a knowledge base folder, or one that is running.

    r1-router kb search kbs/text "capital of Mola-San" k=3
    """
    image = Path(settings.image)
    query = Query(text, read_picture(image.parent, image.name) if settings.image else None)
    if Path(where).is_dir() or "/" in where:
        check_start(TrainConfig())
        card = KnowledgeBase.open(where).card
        config = RetrievalConfig({card.name: where}, card.embedder)
        with start_ray(TrainConfig()), bars(console) as progress:
            retriever = start_retrieval(config, progress, announce=lambda plan: show(console, plan.lines()))
            found = retriever.search(card.name, [query], settings.k)[0]
            retriever.close()
    else:
        with join_ray():
            found = find_running(where).search(where, [query], settings.k)[0]
    show(console, passage_lines(found))
    return 1 if found and found[0].error else 0


def passage_lines(passages: Sequence[Passage]) -> Iterator[str]:
    for rank, passage in enumerate(passages, 1):
        yield f"{rank}. {passage.id} ({passage.score:.3f}): {passage.error or passage.full_text}"


@command
def main(arguments: list[str]) -> int:
    console = Console()
    match arguments:
        case ["build", source, out, *settings] if not is_setting(source) and not is_setting(out):
            return build(source, out, settings, console)
        case ["search", where, text, *settings]:
            return search(where, text, read_settings(SearchSettings, settings), console)
        case ["status", *folders]:
            return status(folders, console)
    usage = "build SOURCE OUT [key=value ...], search FOLDER_OR_NAME QUERY [key=value ...], or status [FOLDER ...]"
    raise RunConfigError(f"do what? r1-router kb {usage}")
