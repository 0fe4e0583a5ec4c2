"""A source of your own: threads of a forum. Each answer is a passage, with the question as its title.

    cd examples && r1-router kb build threads.jsonl kbs/forum source=my_knowledge_base:Forum shortest=20

MODULE:NAME is looked up in the folder that the command is started in.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retrieval_actors.records import Passage
from retrieval_actors.sources.source import Source, text_of


@dataclass(frozen=True)
class Forum(Source):
    name = "forum"
    form = "an object with 'thread', 'question' and 'answers' on each line"
    shortest: int = 1  # A setting: characters of an answer, at least

    def passages(self, record: Any, file: Path, default_id: str) -> Iterator[Passage]:
        for number, answer in enumerate(record["answers"]):
            if len(answer) >= self.shortest:
                yield Passage(id=f"{record['thread']}#{number}", title=text_of(record, "question"), text=answer)
