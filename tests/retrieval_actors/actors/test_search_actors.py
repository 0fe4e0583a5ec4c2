"""What a shard sends back: the passages of its answer, and no more than these."""

from __future__ import annotations

import os

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval_actors.actors.search_actors import PassageRows, ShardActor
from retrieval_actors.build.from_passages import write_knowledge_base
from retrieval_actors.knowledge_base import KnowledgeBaseError
from retrieval_actors.records import Passage


@given(lengths=st.lists(st.integers(0, 7), max_size=6), data=st.data())
def test_rows_are_taken_from_whichever_chunk_they_are_in(lengths, data):
    numbers = iter(range(100))
    names = ("id", "title", "text")
    ids = [[str(next(numbers)) for _ in range(length)] for length in lengths]
    chunks = [pa.record_batch({name: pa.array(its, pa.string()) for name in names}) for its in ids]
    table = pa.Table.from_batches(chunks, pa.schema([(name, pa.string()) for name in names]))
    rows = sorted(data.draw(st.sets(st.integers(0, max(0, table.num_rows - 1)), max_size=table.num_rows)) if table.num_rows else [])
    found = PassageRows(table).hits(0, np.zeros((1, len(rows))), np.array([rows], np.int64), pictures=False).passages
    assert found == {row: (str(row),) * 3 + (None,) for row in rows}


def test_a_passage_that_many_queries_find_travels_once():
    stored = PassageRows(pa.table({"id": ["a", "b", "c"], "title": [""] * 3, "text": ["x", "y", "z"], "image": [b"1", b"2", b"3"]}))
    rows = np.array([[2, 0], [2, -1]])
    found = stored.hits(10, np.zeros((2, 2), np.float32), rows, pictures=False)
    assert found.positions.tolist() == [[12, 10], [12, -1]]
    assert found.passages == {10: ("a", "x", "", None), 12: ("c", "z", "", None)}
    found = stored.hits(10, np.zeros((2, 2), np.float32), rows, pictures=True)
    assert [picture for *_, picture in found.passages.values()] == [b"1", b"3"]


def test_a_shard_of_a_folder_that_was_replaced_is_not_searched_and_the_others_in_its_actor_are(tmp_path):
    card = {"name": "text", "retriever_name": "Text Retriever", "description": "", "modality": "text", "embedder": "minilm"}
    vectors = np.eye(4, dtype=np.float32)
    replaced, kept = tmp_path / "kb", tmp_path / "kept"
    first = write_knowledge_base(replaced, passages=[Passage(str(row), "old") for row in range(4)], vectors=vectors, **card)
    other = write_knowledge_base(kept, passages=[Passage(str(row), "kept") for row in range(4)], vectors=vectors, **card)
    shards = {("text", 0): (str(replaced), first.fingerprint), ("other", 0): (str(kept), other.fingerprint)}
    before = ShardActor(shards)
    assert before.ready() == os.getpid()
    write_knowledge_base(replaced, passages=[Passage(str(row), "new") for row in range(4)], vectors=vectors, **card)
    assert {text for _, text, *_ in before.search("text", 0, vectors[:1], 4).passages.values()} == {"old"}  # what it mapped stays
    restarted = ShardActor(shards)
    with pytest.raises(KnowledgeBaseError, match=r"kb\.json was replaced: its fingerprint is \w+, the running one has \w+; start again"):
        restarted.ready()
    assert "was replaced" in restarted.search("text", 0, vectors[:1], 4).reason
    assert {text for _, text, *_ in restarted.search("other", 0, vectors[:1], 4).passages.values()} == {"kept"}
    assert (before.health()["passages"], restarted.health()["passages"]) == (8, 4)
