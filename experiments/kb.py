"""Shows a knowledge base and, with a query, what it finds.

python -m experiments.kb FOLDER ["query"] [k=5]
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from experiments.build_kb import card_table
from experiments.cluster import start_ray
from experiments.command_settings import read_settings
from experiments.config import RunConfigError, TrainConfig
from retrieval_actors.config import RetrievalConfig
from retrieval_actors.embedders import written
from retrieval_actors.knowledge_base import KnowledgeBase
from retrieval_actors.records import Passage, Query
from retrieval_actors.retriever import start_retrieval


@dataclass
class SearchSettings:
    k: int = 5
    """How many passages to show."""
    image: str = ""
    """Path of a PNG or JPEG that the query is asked about."""


def passages_table(passages: list[Passage], query: str) -> Table:
    table = Table(title=f'"{escape(query)}"', title_justify="left")
    table.add_column("score", justify="right")
    table.add_column("id")
    table.add_column("passage")
    for passage in passages:
        table.add_row(f"{passage.score:.3f}", passage.id, escape(passage.error or written(passage)))
    return table


def main(arguments: list[str]) -> int:
    console = Console()
    try:
        bare = [argument for argument in arguments if argument.partition("=")[0] not in ("k", "image")]
        if not 1 <= len(bare) <= 2:
            raise RunConfigError('which one? python -m experiments.kb FOLDER ["query"] [k=5] [image=PATH]')
        settings = read_settings(SearchSettings, [argument for argument in arguments if argument not in bare])
        base = KnowledgeBase.open(bare[0])
        console.print(card_table(base))
        if len(bare) == 1:
            return 0
        picture = None
        if settings.image:
            with open(settings.image, "rb") as file:
                picture = file.read()
        with start_ray(TrainConfig()), console.status("loading the embedder"):
            retriever = start_retrieval(RetrievalConfig(folders={base.card.name: bare[0]}, text_embedder=base.card.embedder))
            found = retriever.search(base.card.name, [Query(bare[1], picture)], settings.k)[0]
            retriever.close()
    except (ValueError, OSError) as error:
        console.print(f"[red]{escape(str(error))}", soft_wrap=True, highlight=False)
        return 2
    console.print(passages_table(found, bare[1]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
