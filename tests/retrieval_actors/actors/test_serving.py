"""Replicas, words, rerankers, breakers and health of knowledge bases that are served to many."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import ray
import tiny_models
from rich.console import Console

from experiments import kb as kb_command
from retrieval_actors.actors.circuit_breaker import CircuitBreaker
from retrieval_actors.actors.start_actors import running_retrievals, start_retrieval
from retrieval_actors.build.from_passages import write_knowledge_base
from retrieval_actors.config import RetrievalConfig
from retrieval_actors.embedders.registry import build_embedder
from retrieval_actors.index.bm25 import BM25Index
from retrieval_actors.knowledge_base import KnowledgeBase, KnowledgeBaseError
from retrieval_actors.records import Passage, Query

TOPICS = ["capital", "currency", "leader", "language", "river", "festival"]
SENTENCES = [f"The {topic} of country {number} is {topic[:3]}{number}." for number in range(20) for topic in TOPICS]
QUERIES = [Query(f"What is the {topic} of country {number}?") for number in (3, 11) for topic in TOPICS]
CARD = {"retriever_name": "Text Retriever", "description": "Facts.", "modality": "text", "embedder": "minilm"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kb")
    passages = [Passage(f"p/{row}", text, image=b"\x89PNG" + bytes([row])) for row, text in enumerate(SENTENCES)]
    vectors = build_embedder("minilm", threads=1).embed_passages(passages)
    for name, lexical in (("facts", True), ("plain", False)):
        write_knowledge_base(folder / name, name=name, passages=passages, vectors=vectors, shards=2, lexical=lexical, **CARD)
    return {name: str(folder / name) for name in ("facts", "plain")}


@pytest.fixture(scope="module")
def retriever(models, folders):
    """Two knowledge bases of two shards, two replicas of each."""
    plans = []
    retriever = start_retrieval(RetrievalConfig(folders=folders, replicas=2, shared_mib=0), announce=plans.append, models_of=models)
    assert plans[0].line().startswith("240 passages, 4 shards in 8 actors")
    yield retriever
    retriever.close()


def answers(found):
    return [[(passage.id, passage.score, passage.error) for passage in passages] for passages in found]


def test_queries_to_several_knowledge_bases_are_one_call(retriever):
    asked = [("facts" if number % 3 else "plain", query) for number, query in enumerate(QUERIES)]
    found = retriever.search_routed(asked, 4)
    assert [{passage.kb for passage in passages} for passages in found] == [{kb} for kb, _ in asked]
    for kb in ("facts", "plain"):
        rows = [row for row, (its, _) in enumerate(asked) if its == kb]
        assert answers([found[row] for row in rows]) == answers(retriever.search(kb, [asked[row][1] for row in rows], 4))
    assert retriever.search_routed([], 4) == []


def test_while_a_replica_is_killed_eight_callers_go_on_and_none_gets_a_wrong_answer(retriever):
    expected = answers(retriever.search("facts", QUERIES, 5))

    @ray.remote(num_cpus=0)
    def caller(retriever, queries, until):
        found = []
        while time.time() < until or len(found) < 3:
            found.append(retriever.search("facts", queries, 5))
        return found

    victims = [ray.get(shard[0].ready.remote(), timeout=60) for shard in retriever.shards["facts"]]
    ready = [caller.remote(retriever, QUERIES, 0.0) for _ in range(8)]  # their processes are up when these have answered
    ray.get(ready, timeout=120)
    callers = [caller.remote(retriever, QUERIES, time.time() + 6) for _ in range(8)]
    time.sleep(1)
    for victim in victims:
        os.kill(victim, signal.SIGKILL)
    found = ray.get(callers, timeout=120)
    assert sum(map(len, found)) >= 24
    assert all(answers(answer) == expected for its in found for answer in its)


def test_a_silent_replica_is_not_waited_for(retriever):
    expected = answers(retriever.search("plain", QUERIES, 5))
    silent = [ray.get(shard[0].ready.remote(), timeout=60) for shard in retriever.shards["plain"]]
    for process in silent:
        os.kill(process, signal.SIGSTOP)
    try:
        hasty = replace(retriever, deadline_s=20.0)
        started = time.monotonic()
        for _ in range(4):
            assert answers(hasty.search("plain", QUERIES, 5)) == expected
        assert time.monotonic() - started < 4 * 2 * 0.2 * hasty.deadline_s  # a tenth of the deadline a search, and patience
    finally:
        for process in silent:
            os.kill(process, signal.SIGCONT)


def test_a_broken_knowledge_base_does_not_hold_up_the_others(retriever):
    processes = [ray.get(replica.ready.remote(), timeout=60) for shard in retriever.shards["plain"] for replica in shard]
    hasty = replace(retriever, deadline_s=1.5, breakers={kb: CircuitBreaker(2, 3.0) for kb in ("facts", "plain")})
    errors = hasty.stats()["errors"]
    for process in processes:
        os.kill(process, signal.SIGSTOP)
    try:
        for _ in range(2):
            facts, plain = hasty.search_routed([("facts", QUERIES[0]), ("plain", QUERIES[0])], 2)
            assert not facts[0].error
            assert plain[0].error == "plain did not answer within 1.5 s (silent)"
        started = time.monotonic()
        facts, plain = hasty.search_routed([("facts", QUERIES[0]), ("plain", QUERIES[0])], 2)
        assert time.monotonic() - started < 1.4
        assert not facts[0].error
        assert plain[0].error.startswith("plain failed 2 times in a row and is not searched for")
    finally:
        for process in processes:
            os.kill(process, signal.SIGCONT)
    assert hasty.stats()["errors"] == errors + 3
    assert hasty.breakers["plain"].seconds_left() > 0
    threading.Event().wait(hasty.breakers["plain"].seconds_left())
    assert not hasty.search("plain", QUERIES[:1], 2)[0][0].error
    assert hasty.breakers["plain"].failures == 0


def test_a_fault_of_the_program_is_raised_and_is_no_failure_of_the_knowledge_base(retriever):
    odd = replace(retriever, breakers={"facts": CircuitBreaker(1, 0.0)})
    for _ in range(2):
        with pytest.raises(ray.exceptions.RayTaskError):
            odd.search("facts", [Query(["not", "a", "text"])], 2)
    assert odd.breakers["facts"].failures == 0
    assert not odd.search("facts", QUERIES[:1], 2)[0][0].error
    assert odd.breakers["facts"].failures == 0


def test_health_says_what_was_searched_and_where_the_shards_are(retriever, capsys):
    retriever.search("facts", QUERIES, 3)
    log = next(log for log in running_retrievals().values() if log == retriever.log)
    health = ray.get(log.health.remote(), timeout=60)["facts"]
    assert health["queries"] >= len(QUERIES)
    assert 0 < health["p50_ms"] <= health["p99_ms"]
    assert health["queries_per_second"] > 0
    console = Console(width=160, file=None)
    assert kb_command.status([], console) == 0
    said = capsys.readouterr().out
    assert "cache hits of query embeddings" in said
    processes = [ray.get(shard[1].ready.remote(), timeout=60) for shard in retriever.shards["facts"]]
    assert all(str(process) in said for process in processes)


def test_a_search_by_name_of_what_runs_shows_passages(retriever, capsys, folders, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert kb_command.main(["search", "plain", "What is the river of country 7?", "k=1"]) == 0
    said = capsys.readouterr().out
    assert "The river of country 7 is riv7." in said
    assert kb_command.main(["search", "missing", "anything"]) == 2
    said = capsys.readouterr().out
    assert "'missing' is neither a folder nor a knowledge base that runs here (" in said
    assert {"facts", "plain"} <= set(re.findall(r"\w+", said.partition("(")[2]))  # and those of other tests
    assert kb_command.main(["status", folders["facts"]]) == 0
    assert "searched: read by every search" in capsys.readouterr().out


def test_words_and_vectors_are_fused_and_a_reranker_has_the_last_word(retriever, folders, tmp_path):
    model = tiny_models.cross_encoder(tmp_path / "reranker")
    config = RetrievalConfig(folders={"facts": folders["facts"]}, hybrid=True)
    hybrid = start_retrieval(config, models_of=retriever)
    reranked = start_retrieval(replace(config, reranker=f"cross-encoder:{model}"), models_of=retriever)
    try:
        query = Query("riv11")
        by_words = BM25Index.load(KnowledgeBase.open(folders["facts"]).lexical_folder).search([query.text], 1)[1]
        best = hybrid.search("facts", [query, QUERIES[2]], 20)
        assert best[0][0].id == f"p/{by_words[0, 0]}"
        assert best[0][0].text == "The river of country 11 is riv11."
        assert all(0 < passage.score < 2 / 60 for passages in best for passage in passages)
        found = reranked.search("facts", [query, QUERIES[2]], 3)
        for passages, candidates in zip(found, best, strict=True):
            assert len(passages) == 3
            assert {passage.id for passage in passages} <= {passage.id for passage in candidates}
            assert [passage.score for passage in passages] == sorted((passage.score for passage in passages), reverse=True)
        assert answers(found) != answers([passages[:3] for passages in best])
    finally:
        hybrid.close()
        reranked.close()


def test_what_the_cluster_can_not_give_is_said_before_anything_starts(ray_cluster, folders):
    for config, finding in [
        (RetrievalConfig(folders={"plain": folders["plain"]}, hybrid=True), "plain/kb.json has no lexical index"),
        (RetrievalConfig(folders=folders, gpus_per_embedder=0.5), "retrieval.gpus_per_embedder=0.5, Ray has 0 GPUs: lower it"),
        (RetrievalConfig(folders=folders, replicas=10**6), "lower retrieval.replicas"),
    ]:
        with pytest.raises(KnowledgeBaseError, match=finding.replace(".", r"\.")):
            start_retrieval(config)
    with pytest.raises(ValueError, match="unknown reranker"):
        start_retrieval(RetrievalConfig(folders=folders, reranker="bge"))


def test_an_empty_knowledge_base_and_one_with_less_than_k_answer_with_what_there_is(retriever, tmp_path):
    for name, passages in (("empty", []), ("two", [Passage("a", "Älpler 東京"), Passage("b", "b")])):
        vectors = np.eye(384, dtype=np.float32)[: len(passages)]
        write_knowledge_base(tmp_path / name, name=name, passages=passages, vectors=vectors, shards=3, lexical=True, **CARD)
    config = RetrievalConfig(folders={name: str(tmp_path / name) for name in ("empty", "two")}, hybrid=True)
    nearly_empty = start_retrieval(config, models_of=retriever)
    try:
        found = nearly_empty.search_routed(
            [("empty", Query("x")), ("two", Query("東京")), ("two", Query("")), ("empty", Query("y " * 9000))], 50
        )
    finally:
        nearly_empty.close()
    assert [len(passages) for passages in found] == [0, 2, 2, 0]
    assert {passage.text for passage in found[1]} == {"Älpler 東京", "b"}


def test_a_second_retrieval_borrows_the_models_of_the_first_and_leaves_them_running(retriever, folders):
    second = start_retrieval(RetrievalConfig(folders={"plain": folders["plain"]}), models_of=retriever)
    try:
        assert second.embedders["minilm"] == retriever.embedders["minilm"]
        assert answers(second.search("plain", QUERIES, 3)) == answers(retriever.search("plain", QUERIES, 3))
    finally:
        second.close()
    assert len(retriever.embed(["still here"])) == 1
