"""Shows knowledge bases and what they find.

python -m experiments.kb status                              those that run on this cluster: shards, memory, queries/s, latencies, errors
python -m experiments.kb status FOLDER [FOLDER ...]          folders: their cards, and what loading them will need
python -m experiments.kb search FOLDER_OR_NAME "query" [k=5] [image=PATH] [hybrid=true] [reranker=NAME]
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from experiments.build_kb import card_table
from experiments.cluster import start_ray
from experiments.command_settings import read_settings
from experiments.config import RunConfigError, TrainConfig
from retrieval_actors.config import RetrievalConfig
from retrieval_actors.embedders import written
from retrieval_actors.knowledge_base import KnowledgeBase
from retrieval_actors.memory_plan import MemoryPlan, plan_memory, readable
from retrieval_actors.records import Passage, Query
from retrieval_actors.retriever import RetrievalUnavailableError, Retriever
from retrieval_actors.start import running_retrievals, start_retrieval

USAGE = 'python -m experiments.kb status [FOLDER ...]  or  python -m experiments.kb search FOLDER_OR_NAME "query" [k=5] [image=PATH]'
ANSWER_SECONDS = 30
CAPTION = "searched: read by every search, best in memory; mapped: read where it is needed"


@dataclass
class SearchSettings:
    k: int = 5
    """How many passages to show."""
    image: str = ""
    """Path of a PNG or JPEG that the query is asked about."""
    hybrid: bool = False
    """By words as well (of a folder; one that runs does as it was started)."""
    reranker: str = ""
    """A model that reads the best again, such as cross-encoder:NAME_OR_PATH."""


def plan_table(plan: MemoryPlan) -> Table:
    """What loading will need, shard by shard."""
    table = Table(title=plan.line(), title_justify="left", caption=plan.refusal() or CAPTION, caption_justify="left")
    for heading in ("knowledge base", "shard", "index", "passages", "searched", "mapped", "replicas"):
        table.add_column(heading, justify="left" if heading in ("knowledge base", "index") else "right", no_wrap=True)
    for need in plan.needs:
        sizes = (f"{need.passages:,}", readable(need.searched_bytes), readable(need.mapped_bytes))
        table.add_row(need.kb, str(need.shard), need.index, *sizes, str(need.replicas))
    return table


def status_tables(name: str, log: Any) -> Iterator[Table]:
    """Of one retrieval that runs: its knowledge bases as their users see them, and their processes."""
    health, retriever = ray.get([log.health.remote(), log.retriever.remote()], timeout=ANSWER_SECONDS)
    if retriever is None:
        yield Table(title=f"{name} is starting, or its log was restarted", title_justify="left")
        return
    used = Table(title=name, title_justify="left")
    for heading in ("knowledge base", "passages", "queries", "queries/s", "p50 ms", "p99 ms", "errors"):
        used.add_column(heading, justify="left" if heading == "knowledge base" else "right", no_wrap=True)
    for card in retriever.catalog:
        seen = health.get(card.name, dict.fromkeys(("queries", "queries_per_second", "p50_ms", "p99_ms", "errors"), 0))
        counts = (f"{card.passages:,}", f"{seen['queries']:,}", f"{seen['queries_per_second']:,.1f}")
        used.add_row(card.name, *counts, f"{seen['p50_ms']:.1f}", f"{seen['p99_ms']:.1f}", f"{seen['errors']:,}")
    used.caption = f"cache hits of query embeddings: {retriever.stats()['cache_hit_rate']:.1%}"
    yield used
    yield _process_table(retriever)


def _process_table(retriever: Retriever) -> Table:
    """One row for each shard actor: loaded, loading or dead."""
    table = Table(caption="pss: memory, with pages that processes share split among them")
    for heading in ("knowledge base", "shard", "replica", "process", "passages", "pss", "rss"):
        table.add_column(heading, justify="left" if heading == "knowledge base" else "right")
    asked = [
        (kb, number, copy, replica.health.remote())
        for kb, shards in retriever.shards.items()
        for number, replicas in enumerate(shards)
        for copy, replica in enumerate(replicas)
    ]
    ready, _ = ray.wait([reference for *_, reference in asked], num_returns=len(asked), timeout=5)
    for kb, number, copy, reference in asked:
        try:
            found = ray.get(reference, timeout=5) if reference in ready else {}
            state = f"{found['pid']:.0f}" if found else "[yellow]loading or busy"
        except ray.exceptions.RayActorError:
            found, state = {}, "[red]dead, being restarted"
        sizes = [readable(found[key]) if key in found else "" for key in ("pss", "rss")]
        table.add_row(kb, str(number), str(copy), state, f"{found['passages']:,.0f}" if found else "", *sizes)
    return table


def status(folders: Sequence[str], console: Console) -> int:
    if folders:
        bases = [KnowledgeBase.open(folder) for folder in folders]
        for base in bases:
            console.print(card_table(base))
        console.print(plan_table(plan_memory(bases, replicas=1, nodes=[available_memory()])))
        return 0
    with _connected():
        found = running_retrievals()
        for name, log in found.items():
            for table in status_tables(name, log):
                console.print(table)
    if not found:
        console.print(
            "no knowledge base runs here: a training run, an evaluation or a service starts its own (experiments.kb status FOLDER)"
        )
    return 0


def search(where: str, text: str, settings: SearchSettings, console: Console) -> int:
    picture = Path(settings.image).read_bytes() if settings.image else None
    query = Query(text, picture)
    if Path(where).is_dir() or "/" in where:
        base = KnowledgeBase.open(where)
        config = RetrievalConfig(
            {base.card.name: where}, text_embedder=base.card.embedder, hybrid=settings.hybrid, reranker=settings.reranker
        )
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        with start_ray(TrainConfig()), Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
            task = progress.add_task("starting retrieval actors")
            retriever = start_retrieval(
                config,
                lambda _, done, total: progress.update(task, completed=done, total=total),
                announce=lambda plan: console.print(plan_table(plan)),
            )
            found = retriever.search(base.card.name, [query], settings.k, pictures=True)[0]
            retriever.close()
    else:
        with _connected():
            retriever = _running(where)
            found = retriever.search(where, [query], settings.k, pictures=True)[0]
    console.print(passages_table(found, text))
    return 1 if found and found[0].error else 0


def passages_table(passages: list[Passage], query: str) -> Table:
    """Best first; pictures are written aside, and their paths shown."""
    pictured = any(passage.image for passage in passages)
    folder = Path(tempfile.mkdtemp(prefix="kb-pictures-")) if pictured else None
    table = Table(title=f'"{escape(query)}"', title_justify="left")
    table.add_column("score", justify="right")
    table.add_column("id")
    table.add_column("passage")
    if folder:
        table.add_column("picture", overflow="fold")
    for rank, passage in enumerate(passages, 1):
        cells = [f"{passage.score:.3f}", escape(passage.id), escape(passage.error or written(passage))]
        if folder:
            cells.append(str(_write_picture(folder, rank, passage)) if passage.image else "")
        table.add_row(*cells)
    return table


def available_memory() -> int:
    """Bytes that this machine could give to new processes, where it tells (Linux); else 0."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            return next(1024 * int(line.split()[1]) for line in file if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return 0


@contextmanager
def _connected() -> Iterator[None]:
    """On the Ray that runs on this machine, or that RAY_ADDRESS names."""
    if ray.is_initialized():
        yield
        return
    try:
        ray.init(address="auto", logging_level="error", log_to_driver=False)
    except ConnectionError as error:
        raise RunConfigError("no Ray runs here: start a run first, set RAY_ADDRESS, or name a FOLDER") from error
    try:
        yield
    finally:
        ray.shutdown()


def _running(kb: str) -> Retriever:
    heard = [ray.get(log.retriever.remote(), timeout=ANSWER_SECONDS) for log in running_retrievals().values()]
    retrievers = [retriever for retriever in heard if retriever]
    for retriever in retrievers:
        if any(card.name == kb for card in retriever.catalog):
            return retriever
    known = sorted({card.name for retriever in retrievers for card in retriever.catalog})
    raise RunConfigError(f"{kb!r} is neither a folder nor a knowledge base that runs here ({', '.join(known) or 'none does'})")


def _write_picture(folder: Path, rank: int, passage: Passage) -> Path:
    image = passage.image or b""
    name = f"{rank}-" + "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in passage.id)[:80]
    path = folder / (name + (".png" if image.startswith(b"\x89PNG") else ".jpg"))
    path.write_bytes(image)
    return path


def main(arguments: list[str]) -> int:
    console = Console()
    try:
        bare = [one for one in arguments if "=" not in one or one.partition("=")[0] not in SearchSettings.__dataclass_fields__]
        settings = read_settings(SearchSettings, [argument for argument in arguments if argument not in bare])
        match bare:
            case ["status", *folders]:
                return status(folders, console)
            case ["search", where, text]:
                return search(where, text, settings, console)
            case _:
                raise RunConfigError(f"show what? {USAGE}")
    except (ValueError, OSError, RetrievalUnavailableError, ray.exceptions.RayError) as error:
        console.print(f"[red]{escape(str(error))}", soft_wrap=True, highlight=False)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
