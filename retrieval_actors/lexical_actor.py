"""The words of a whole knowledge base in a process of their own."""

from __future__ import annotations

import os

import pyarrow as pa

from retrieval_actors.knowledge_base import KnowledgeBase, KnowledgeBaseError
from retrieval_actors.lexical import BM25Index
from retrieval_actors.passage_rows import PassageRows
from retrieval_actors.shard_actor import ShardHits, hits


class LexicalActor:
    def __init__(self, folder: str, fingerprint: str):
        base = KnowledgeBase.open(folder, verify=False).same_as(fingerprint)
        if base.lexical_folder is None:
            raise KnowledgeBaseError(f"{folder} has no words: build it again with lexical=true")
        self._index = BM25Index.load(base.lexical_folder)
        self._rows = PassageRows(pa.concat_tables([base.shard(number).table for number in range(base.card.shards)]))

    def ready(self) -> int:
        """Its process id, once it is loaded."""
        return os.getpid()

    def search(self, texts: list[str], k: int, pictures: bool = False) -> ShardHits:
        return hits(self._rows, 0, *self._index.search(texts, k), pictures)
