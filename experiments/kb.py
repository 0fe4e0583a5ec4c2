"""`r1-router kb build | search | status`: build, search and show knowledge bases; see docs/05_knowledge_bases.md."""

from __future__ import annotations

import collections
import dataclasses
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import ray
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from experiments.cluster.ray_session import check_start, join_ray, start_ray
from experiments.command_line.entry_point import STOPPED, command
from experiments.command_line.terminal import Console
from experiments.config import RunConfigError, TrainConfig
from experiments.config.reading import is_setting, read_settings
from retrieval_actors.actors.memory_plan import LEXICAL_SHARD, MemoryPlan, plan_memory, readable
from retrieval_actors.actors.start_actors import running_retrievals, start_retrieval
from retrieval_actors.build.from_passages import SKIPPED
from retrieval_actors.build.from_passages import Progress as Report
from retrieval_actors.build.from_source import BuildSettings, build_from_source
from retrieval_actors.config import RetrievalConfig
from retrieval_actors.embedders.registry import check_embedder_name
from retrieval_actors.folder_lock import hold
from retrieval_actors.knowledge_base import KnowledgeBase
from retrieval_actors.pictures import read_picture
from retrieval_actors.records import Passage, Query
from retrieval_actors.sharded_search import Retriever
from retrieval_actors.sources.passage_lines import PassageLines
from retrieval_actors.sources.read_passages import Reading, find_source

ANSWER_SECONDS = 30


@dataclass
class SearchSettings:
    k: int = 5
    """Passages to show."""
    image: str = ""
    """Path of a PNG or JPEG that the query is about."""


def planned(source: str, out: str, arguments: Sequence[str]) -> tuple[Reading, Path, BuildSettings]:
    """What is read, where to, and how. Raises ValueError, one line, for a setting that is unknown or does not fit."""
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
        with hold(folder), start_ray(TrainConfig()), build_bars(console) as progress:
            built = build_from_source(reading, folder, settings, progress, lambda line: console.print(line, soft_wrap=True))
    except KeyboardInterrupt:
        console.print("interrupted: the same command continues where it was")
        return STOPPED
    show(console, card_lines(built.base))
    rate = built.embedded / max(built.embedding_seconds, 1e-9)
    console.print(f"  built in {time.perf_counter() - started:.1f} s: embedded {built.embedded:,} passages, {rate:,.0f} passages/s")
    console.print(f"  resumed: {built.resumed_chunks:,} of {built.chunks:,} chunks were embedded before")
    console.print(f"  left out: {built.left_out:,} records without a passage")
    if built.broken:
        console.print(f"  skipped: {len(built.broken):,} broken records, all of them in {SKIPPED}; the first:")
        show(console, (f"    {record['place']}: {record['reason']}" for record in built.broken[:5]))
    return 0


def show(console: Console, lines: Iterable[str]) -> None:
    for line in lines:
        console.print(line, soft_wrap=True)


@contextmanager
def build_bars(console: Console) -> Iterator[Report]:
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal, speed_estimate_period=600) as bars:

        def report(what: str, done: int, total: int) -> None:
            if what not in tasks:  # what an earlier build did counts for no speed
                tasks[what] = bars.add_task(what, completed=done, total=total or None)
            bars.update(tasks[what], completed=done, total=total or None)

        yield report


def card_lines(base: KnowledgeBase) -> Iterator[str]:
    card, size = base.card, readable(sum(entry["bytes"] for entry in base.manifest["files"].values()))
    yield str(base.folder)
    for key in ("name", "retriever_name", "description", "modality", "fingerprint"):
        yield f"  {key.replace('_', ' ')}: {getattr(card, key)}"
    yield f"  passages: {card.passages:,} in {card.shards} shards, {size}"
    yield f"  embedder: {card.embedder}, {card.dimension} numbers a vector"


def memory_lines(plan: MemoryPlan) -> Iterator[str]:
    yield plan.line()
    for need in plan.needs:
        shard = "all shards" if need.shard == LEXICAL_SHARD else f"shard {need.shard}"
        yield f"  {need.kb}, {shard}, {need.index}: {need.passages:,} passages, {readable(need.searched_bytes)} searched"
    yield plan.refusal() or "searched: read by every search, so best in memory"


def status(folders: Sequence[str], console: Console) -> int:
    """`r1-router kb status [FOLDER ...]`: show the knowledge bases that run on this cluster, or what folders hold and need.

    r1-router kb status kbs/text
    """
    if folders:
        bases = [KnowledgeBase.open(folder) for folder in folders]
        for base in bases:
            show(console, card_lines(base))
        show(console, memory_lines(plan_memory(bases, replicas=1, nodes=[psutil.virtual_memory().available])))
        return 0
    with join_ray():
        found = running_retrievals()
        for name, log in found.items():
            show(console, running_lines(name, log))
    if not found:
        console.print("no knowledge base runs here: training, evaluation and the service start their own")
    return 0


def running_lines(name: str, log: Any) -> Iterator[str]:
    health, retriever = ray.get([log.health.remote(), log.retriever.remote()], timeout=ANSWER_SECONDS)
    if retriever is None:
        yield f"{name} is starting, or its log was restarted"
        return
    yield f"{name}: cache hits of query embeddings {retriever.stats()['cache_hit_rate']:.1%}"
    for card in retriever.catalog:
        seen = collections.defaultdict(float, health.get(card.name, {}))
        counts = f"{seen['queries']:,.0f} queries ({seen['queries_per_second']:,.1f}/s), {seen['errors']:,.0f} errors"
        yield f"  {card.name}: {card.passages:,} passages, {counts}, p50 {seen['p50_ms']:.1f} ms, p99 {seen['p99_ms']:.1f} ms"
    asked = {
        replica.health.remote(): f"  {kb}, shard {number}, replica {copy}"
        for kb, shards in retriever.shards.items()
        for number, replicas in enumerate(shards)
        for copy, replica in enumerate(replicas)
    }
    ray.wait(list(asked), num_returns=len(asked), timeout=5)
    for reference, shard in asked.items():
        try:
            found = ray.get(reference, timeout=0)
            yield f"{shard}: process {found['pid']:.0f}, {found['passages']:,.0f} passages, {readable(found['memory'])}"
        except ray.exceptions.GetTimeoutError:
            yield f"{shard}: loading or busy"
        except ray.exceptions.RayActorError:
            yield f"{shard}: dead, being restarted"


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
        with start_ray(TrainConfig()), build_bars(console) as progress:
            retriever = start_retrieval(config, progress, announce=lambda plan: show(console, memory_lines(plan)))
            found = retriever.search(card.name, [query], settings.k)[0]
            retriever.close()
    else:
        with join_ray():
            found = running(where).search(where, [query], settings.k)[0]
    show(console, passage_lines(found))
    return 1 if found and found[0].error else 0


def running(kb: str) -> Retriever:
    """The retrieval on this cluster that has the knowledge base."""
    answers = [ray.get(log.retriever.remote(), timeout=ANSWER_SECONDS) for log in running_retrievals().values()]
    known = {card.name: retriever for retriever in answers if retriever for card in retriever.catalog}
    if kb not in known:
        raise RunConfigError(f"{kb!r} is neither a folder nor a knowledge base that runs here ({', '.join(sorted(known)) or 'none does'})")
    return known[kb]


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
