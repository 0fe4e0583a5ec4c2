"""Turns a JSON Lines file of passages into a knowledge base folder.

    python -m experiments.build_kb SOURCE OUT [name=text] [retriever_name="Text Retriever"] [description=...] [modality=text]
                                              [embedder=minilm] [shards=2] [limit=0]

A line of SOURCE is an object with `text` and optionally `title`, `id` and `image` (path of a PNG or JPEG, relative to SOURCE).
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from experiments.command_settings import read_settings
from experiments.config import RunConfigError
from retrieval_actors.build import build_knowledge_base
from retrieval_actors.knowledge_base import KnowledgeBase
from retrieval_actors.passage_lines import read_passages
from retrieval_actors.records import Passage

RETRIEVER_NAMES = {"text": "Text Retriever", "text_image": "Text Image Retriever", "table": "Table Retriever"}
EMBEDDERS = {"text": "minilm", "text_image": "colour-layout+minilm", "table": "minilm"}


@dataclass
class BuildSettings:
    name: str = ""
    """How configurations call it; empty: its modality."""
    retriever_name: str = ""
    """How the policy writes it; empty: by modality, "Text Retriever" and so on."""
    description: str = ""
    """One sentence for the prompt; empty: the name of the source."""
    modality: str = ""
    """`text`, `text_image` or `table`; empty: `text_image` where any passage has a picture, else `text`."""
    embedder: str = ""
    """Empty: `colour-layout+minilm` for `text_image`, else `minilm`."""
    shards: int = 2
    limit: int = 0
    """Take only so many lines; 0: all."""


def build(source: str | Path, out: str | Path, settings: BuildSettings, console: Console) -> KnowledgeBase:
    """Raises ValueError, one line, for a broken line of the source or a setting that does not fit."""
    passages: list[Passage] = list(read_passages(source, settings.limit))
    if not passages:
        raise ValueError(f"{source}: no passages in it")
    modality = settings.modality or ("text_image" if any(passage.image for passage in passages) else "text")
    if modality not in RETRIEVER_NAMES:
        raise ValueError(f"modality={modality}: use one of {', '.join(RETRIEVER_NAMES)}")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("passages"), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("embedding", total=len(passages))
        return build_knowledge_base(
            passages,
            out,
            name=settings.name or modality,
            retriever_name=settings.retriever_name or RETRIEVER_NAMES[modality],
            description=settings.description or f"passages from {Path(source).name}",
            modality=modality,
            embedder_name=settings.embedder or EMBEDDERS[modality],
            shards=settings.shards,
            progress=lambda _, done, total: progress.update(task, completed=done, total=total),
        )


def card_table(base: KnowledgeBase, seconds: float | None = None) -> Table:
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
    if seconds is not None:
        rows["built in"] = f"{seconds:.1f} s ({card.passages / max(seconds, 1e-9):,.0f} passages/s, loading the embedder included)"
    for key, value in rows.items():
        table.add_row(key, value)
    return table


def main(arguments: list[str]) -> int:
    console = Console()
    started = time.perf_counter()
    try:
        if len(arguments) < 2 or "=" in arguments[0] or "=" in arguments[1]:
            raise RunConfigError("from what, to where? python -m experiments.build_kb SOURCE OUT [key=value ...]")
        base = build(arguments[0], arguments[1], read_settings(BuildSettings, arguments[2:]), console)
    except (ValueError, OSError) as error:
        console.print(f"[red]{escape(str(error))}", soft_wrap=True, highlight=False)
        return 2
    console.print(card_table(base, time.perf_counter() - started))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
