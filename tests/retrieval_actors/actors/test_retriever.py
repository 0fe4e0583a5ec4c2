"""Searching through real actors: one answer however it is sharded, and an answer even when a process dies."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from retrieval_actors.actors.start_actors import start_retrieval
from retrieval_actors.build.from_passages import write_knowledge_base
from retrieval_actors.config import RetrievalConfig
from retrieval_actors.embedders.registry import build_embedder
from retrieval_actors.knowledge_base import KnowledgeBaseError
from retrieval_actors.records import Passage, Query
from retrieval_actors.sources.read_passages import read_source

DATA = Path(__file__).parents[3] / "../shared/data/2wiki_hipporag1000"
TOPICS = ["capital", "currency", "leader", "language", "river", "festival"]
SENTENCES = [f"The {topic} of country {number} is {topic[:3]}{number}." for number in range(20) for topic in TOPICS]
CARD = {"retriever_name": "Text Retriever", "description": "Facts.", "modality": "text", "embedder": "minilm"}
QUERIES = [Query(f"What is the {topic} of country {number}?") for number in (3, 11, 17) for topic in TOPICS]


@pytest.fixture(scope="module")
def retriever(models, tmp_path_factory):
    """The same 120 passages as one shard, as three, and to be broken; sixty times the same sentence; and some of Wikipedia."""
    folder = tmp_path_factory.mktemp("kb")
    embedder = build_embedder("minilm", threads=1)
    passages = [Passage(str(row), text, image=b"picture") for row, text in enumerate(SENTENCES)]
    vectors = embedder.embed_passages(passages)
    wikipedia = list(read_source(DATA / "corpus.jsonl", limit=150)) if DATA.is_dir() else passages
    contents = {
        "one": (passages, vectors, 1),
        "three": (passages, vectors, 3),
        "broken": (passages, vectors, 1),
        "equal": (passages[:60], vectors[[0] * 60], 2),
        "wikipedia": (wikipedia, embedder.embed_passages(wikipedia), 2),
    }
    for name, (rows, their_vectors, shards) in contents.items():
        write_knowledge_base(folder / name, name=name, passages=rows, vectors=their_vectors, shards=shards, **CARD)
    seen = []
    folders = {name: str(folder / name) for name in contents}
    retriever = start_retrieval(
        RetrievalConfig(folders=folders, deadline_s=150, shared_mib=0), lambda *reported: seen.append(reported), models_of=models
    )
    assert [(done, total) for what, done, total in seen if what == "starting retrieval actors"] == [(done, 10) for done in range(1, 11)]
    assert [what for what, done, total in seen if done == total][:-1] == [f"checking the files of {name}" for name in contents]
    yield retriever
    retriever.close()


def process_of(actor: Any) -> int:
    """Its process id; after a kill, that of the restarted process."""
    end = time.monotonic() + 60
    while True:
        try:
            return ray.get(actor.ready.remote(), timeout=60)
        except ray.exceptions.RayActorError:
            assert time.monotonic() < end, "the actor was not restarted in a minute"
            time.sleep(0.1)


def answers(found: list[list[Passage]]) -> list[list[tuple]]:
    return [[(passage.id, passage.text, passage.score) for passage in passages] for passages in found]


def test_three_shards_answer_exactly_like_one(retriever):
    found = retriever.search("three", QUERIES, 7)
    assert answers(found) == answers(retriever.search("one", QUERIES, 7))
    for query, passages in zip(QUERIES, found, strict=True):
        assert query.text.split()[3] in passages[0].text
        assert [passage.score for passage in passages] == sorted((passage.score for passage in passages), reverse=True)
        assert {passage.kb for passage in passages} == {"three"}
        assert not any(passage.image for passage in passages)


def test_equal_passages_come_in_the_order_of_the_knowledge_base(retriever):
    for passages in retriever.search("equal", QUERIES[:3], 20):
        assert [passage.id for passage in passages] == [str(row) for row in range(20)]


def test_odd_requests_are_legal_or_refused_in_words(retriever):
    assert retriever.search("one", [], 3) == []
    assert len(retriever.search("three", [Query("")], 500)[0]) == 120
    assert len(retriever.search("three", [Query("東京 " * 3000)], 2)[0]) == 2
    with pytest.raises(ValueError, match="unknown knowledge base 'video': known are one, three, "):
        retriever.search("video", QUERIES, 3)
    with pytest.raises(ValueError, match="k = 0"):
        retriever.search("one", QUERIES, 0)


def test_a_query_is_embedded_once_and_everything_is_counted_in_one_place(retriever):
    before = retriever.stats()
    texts = [f"never asked before {number}" for number in range(4)]

    @ray.remote(num_cpus=0)
    def elsewhere(handle):
        return handle.embed(texts), handle.search("one", [Query(text) for text in texts], 1)

    vectors, _ = ray.get(elsewhere.remote(retriever), timeout=60)
    np.testing.assert_array_equal(vectors, retriever.embed(texts))
    after = retriever.stats()
    assert (after["searches"] - before["searches"], after["queries"] - before["queries"]) == (1, 4)
    assert after["errors"] == before["errors"]
    assert 0 < after["cache_hit_rate"] < 1


def test_a_shard_whose_process_is_killed_is_restarted_and_the_answer_is_complete(retriever):
    expected = answers(retriever.search("three", QUERIES, 5))
    errors = retriever.stats()["errors"]
    victim = retriever.shards["three"][1][0]
    process = process_of(victim)
    os.kill(process, signal.SIGKILL)
    assert answers(retriever.search("three", QUERIES, 5)) == expected
    ray.kill(victim, no_restart=False)
    assert answers(retriever.search("three", QUERIES, 5)) == expected
    assert process_of(victim) != process
    assert retriever.stats()["errors"] == errors


def test_a_killed_embedder_is_restarted_and_gives_the_same_bits(retriever):
    before = retriever.embed(["the capital", "a longer text about the leader of country 7"])
    os.kill(process_of(retriever.embedders["minilm"]), signal.SIGKILL)
    np.testing.assert_array_equal(retriever.embed(["the capital", "a longer text about the leader of country 7"]), before)


def test_a_shard_that_hangs_or_is_gone_gives_counted_error_passages_within_the_deadline(retriever):
    hasty = replace(retriever, deadline_s=2)
    errors = hasty.stats()["errors"]
    hanging = process_of(hasty.shards["broken"][0][0])
    os.kill(hanging, signal.SIGSTOP)
    started = time.monotonic()
    found = hasty.search("broken", QUERIES[:2], 2)
    os.kill(hanging, signal.SIGCONT)
    assert time.monotonic() - started < 10
    assert [(passages[0].id, passages[0].kb, passages[0].text, len(passages)) for passages in found] == [("error", "broken", "", 1)] * 2
    assert found[0][0].error == "broken did not answer within 2 s (silent)"
    ray.kill(hasty.shards["broken"][0][0])
    assert "ActorDiedError" in hasty.search("broken", QUERIES[:3], 2)[2][0].error
    assert hasty.stats()["errors"] == errors + 5


def test_what_does_not_fit_the_configuration_is_refused_before_any_search(models, tmp_path):
    def write(**changes):
        vectors = np.ones((1, 1), np.float32)
        write_knowledge_base(tmp_path / "kb", **({"name": "text", "passages": [Passage("0", "a")], "vectors": vectors} | CARD | changes))
        return RetrievalConfig(folders={"text": str(tmp_path / "kb")})

    with pytest.raises(KnowledgeBaseError, match=r"kb\.json names 'table', the key retrieval\.folders\.text says 'text'"):
        start_retrieval(write(name="table"))
    with pytest.raises(KnowledgeBaseError, match=r"kb\.json: unknown embedder 'word2vec'.* and build it again"):
        start_retrieval(write(embedder="word2vec"))
    with pytest.raises(KnowledgeBaseError, match=r"kb\.json has dimension 1, embedder 'minilm' makes 384"):
        start_retrieval(write(), models_of=models)
    (tmp_path / "kb" / "vectors-00000.npy").unlink()
    with pytest.raises(KnowledgeBaseError, match=r"vectors-00000\.npy is missing"):
        start_retrieval(RetrievalConfig(folders={"text": str(tmp_path / "kb")}))
