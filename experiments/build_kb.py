"""Turns a source of passages into a knowledge base folder; goes on where it was when it is started again after a kill.

    python -m experiments.build_kb SOURCE OUT [source=NAME] [key=value ...]

What SOURCE may be, and the settings: docs/knowledge_bases.md.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from experiments.cluster import start_ray
from experiments.command_settings import read_settings
from experiments.config import RunConfigError, TrainConfig
from retrieval_actors.build import Progress as Told
from retrieval_actors.build_from_source import SKIPPED, Build, Built, build_from_source
from retrieval_actors.build_pipeline import Workers
from retrieval_actors.knowledge_base import KnowledgeBase
from retrieval_actors.sources.reading import Reading
from retrieval_actors.sources.registry import find_source
from retrieval_actors.work_folder import ChunkSize


@dataclass
class BuildSettings:
    source: str = "auto"
    """Which form SOURCE has: a name from the table in docs/knowledge_bases.md, or MODULE:CLASS."""
    name: str = ""
    """How configurations call it; empty: its modality."""
    retriever_name: str = ""
    """How the policy writes it; empty: by modality, "Text Retriever" and so on."""
    description: str = ""
    """One sentence for the prompt; empty: the name of the source."""
    modality: str = ""
    """`text`, `text_image` or `table`; empty: `text_image` where any passage has a picture, else that of the source."""
    embedder: str = ""
    """Empty: `colour-layout+minilm` for `text_image`, else `minilm`."""
    shards: int = 0
    """Slices; 0: two, or one where there is a single passage."""
    index: str = "auto"
    """`exact`, a FAISS factory string, or `auto`, which goes by the size of a shard."""
    lexical: bool = False
    """Index the words too (BM25), for hybrid search."""
    window_words: int = 0
    """Split longer texts into windows of so many words; 0: not at all."""
    window_stride: int = 0
    """Words from the start of a window to the start of the next; 0: half a window."""
    limit: int = 0
    """Take only so many records; 0: all."""
    chunk_passages: int = 2048
    """Passages embedded at once, at most: what a kill costs for each worker."""
    on_error: str = "fail"
    """What to do with a broken record: `fail`, or `skip` and list it."""
    workers: int = 1
    """Processes that embed, each with the model in it."""
    threads: int = 0
    """CPU threads of each; 0: the CPUs shared out among them."""
    gpus_per_worker: float = 0.0
    """GPUs that Ray reserves for each."""


def planned(source: str | Path, out: str | Path, arguments: Sequence[str]) -> Build:
    """The build that the command line asks for. Raises ValueError, one line, for a setting that is unknown or does not fit."""
    own = {field.name for field in dataclasses.fields(BuildSettings)}
    asked = next((argument.partition("=")[2] for argument in arguments if argument.startswith("source=")), "auto")
    found = find_source(asked, source)
    # The fields of the source are settings beside ours: a misspelt key is compared with all of them.
    extra = [(field.name, field.type, dataclasses.field(default=field.default)) for field in dataclasses.fields(found)]
    settings: Any = read_settings(dataclasses.make_dataclass("Settings", extra, bases=(BuildSettings,)), arguments)
    if settings.chunk_passages < 1:
        raise RunConfigError(f"chunk_passages={settings.chunk_passages}: at least 1")
    if settings.on_error not in ("fail", "skip"):
        raise RunConfigError(f"on_error={settings.on_error}: use fail or skip")
    return Build(
        reading=Reading(
            path=Path(source).absolute(),  # workers may have another working directory
            source=found(**{key: getattr(settings, key) for key, *_ in extra}),
            window_words=settings.window_words,
            window_stride=settings.window_stride,
            limit=settings.limit,
        ),
        out=Path(out).absolute(),
        skip_broken=settings.on_error == "skip",
        chunk_size=ChunkSize(settings.chunk_passages),
        workers=Workers(settings.workers, settings.threads, settings.gpus_per_worker),
        **{key: getattr(settings, key) for key in own & {field.name for field in dataclasses.fields(Build)} - {"workers"}},
    )


class PassagesPerSecond(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.0f}/s" if task.speed else "", style="dim")


@contextmanager
def shown(console: Console) -> Iterator[Told]:
    """A bar for each stage: how far it is, passages a second, the time left."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), PassagesPerSecond(), TimeRemainingColumn())
    tasks: dict[str, TaskID] = {}
    # A chunk may take half a minute: the speed is that of several, not of what came in the last seconds.
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal, speed_estimate_period=600) as bars:

        def told(what: str, done: int, total: int) -> None:
            if what not in tasks:  # what an earlier build had done is no speed of this one
                tasks[what] = bars.add_task(what, completed=done, total=total or None)
            bars.update(tasks[what], completed=done, total=total or None)

        yield told


def card_table(base: KnowledgeBase) -> Table:
    """What a knowledge base is, line by line."""
    card = base.card
    table = Table(title=str(base.folder), title_justify="left", show_header=False)
    table.add_column(style="dim")
    table.add_column()
    rows = {
        "name": card.name,
        "retriever name": card.retriever_name,
        "description": card.description,
        "modality": card.modality,
        "passages": f"{card.passages:,} in {card.shards} shards",
        "embedder": f"{card.embedder}, {card.dimension} numbers a vector",
        "size": f"{sum(entry['bytes'] for entry in base.manifest['files'].values()) / 2**20:,.1f} MiB",
        "fingerprint": card.fingerprint,
    }
    for key, value in rows.items():
        table.add_row(key, escape(value))
    return table


def built_table(built: Built, seconds: float) -> Table:
    """The card, and how the build went."""
    table = card_table(built.base)
    stages = ", ".join(f"{stage} {spent:.1f} s" for stage, spent in built.seconds.items())
    table.add_row("built in", f"{seconds:.1f} s: {stages}, and what Ray took to start")
    if built.embedded:
        table.add_row("embedded", f"{built.embedded:,} passages, {built.embedded / max(built.seconds['embedding'], 1e-9):,.0f} passages/s")
    if built.resumed_chunks:
        table.add_row("resumed", f"{built.resumed_chunks:,} of {built.chunks:,} chunks were embedded before")
    if built.left_out:
        table.add_row("left out", f"{built.left_out:,} records without a passage")
    if built.broken:
        table.add_row("skipped", f"{built.broken:,} broken records, all of them in {SKIPPED}; the first:")
        for line in built.first_broken:
            broken = json.loads(line)
            table.add_row("", escape(f"{broken['place']}: {broken['reason']}"))
    return table


@contextmanager
def quiet_ray() -> Iterator[None]:
    """Ray for a build, which SIGTERM ends like Ctrl-C.

    Ray's C++ side writes a warning about every pool of actors to the terminal, which no logging level of Python reaches, and a line about
    the variable that silences it.
    """
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    with ExitStack() as running:
        terminal = os.dup(2)
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        try:
            running.enter_context(start_ray(TrainConfig()))
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)
        # Set once Ray, which brings its own, has started.
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
        running.callback(signal.signal, signal.SIGTERM, before)
        yield


def main(arguments: list[str]) -> int:
    console = Console()
    started = time.perf_counter()
    try:
        if len(arguments) < 2 or "=" in arguments[0] or "=" in arguments[1]:
            raise RunConfigError("from what, to where? python -m experiments.build_kb SOURCE OUT [key=value ...]")
        build = planned(arguments[0], arguments[1], arguments[2:])
        with quiet_ray(), shown(console) as progress:
            built = build_from_source(build, progress, lambda line: console.print(escape(line), soft_wrap=True, highlight=False))
    except (ValueError, OSError) as error:
        console.print(f"[red]{escape(str(error))}", soft_wrap=True, highlight=False)
        return 2
    except KeyboardInterrupt:
        console.print("interrupted: the same command goes on where it was")
        return 130
    console.print(built_table(built, time.perf_counter() - started))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
