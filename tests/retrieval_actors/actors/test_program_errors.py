"""What is a fault of the program or of a query, and what a fault of the service: only the latter is an error passage and counts for a breaker."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest
import ray

from retrieval_actors.actors.circuit_breaker import CircuitBreaker
from retrieval_actors.actors.search_log import SearchLog
from retrieval_actors.records import KnowledgeBaseCard, Query, ShardHits
from retrieval_actors.sharded_search import Call, Retriever, call_replicas

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the processes of Ray cannot import what lies beside a test


class Embedder:
    def embed_queries(self, name, queries):
        return np.array([[float(len(query.text))] for query in queries], np.float32)


class Shard:
    """One passage; a query of 13 letters is more than it can do."""

    def search(self, kb, number, vectors, k, pictures):
        if (vectors == 13).any():
            raise KeyError("thirteen")
        rows = np.zeros((len(vectors), 1), np.int64)
        return ShardHits(np.ones((len(vectors), 1), np.float32), rows, {0: ("p", "a", "", None)})


@pytest.fixture(scope="module")
def retriever(ray_cluster):
    """Two knowledge bases, `text` and `flags`, each with an embedder of its own. Their breakers open at the first failure."""
    start = {name: ray.remote(num_cpus=0)(kind) for name, kind in (("embedder", Embedder), ("shard", Shard), ("log", SearchLog))}
    names = ("text", "flags")
    return Retriever(
        catalog=tuple(KnowledgeBaseCard(kb, f"{kb} retriever", "", "text", 1, "", f"embedder of {kb}", 1, 1) for kb in names),
        shards={kb: ((start["shard"].remote(),),) for kb in names},
        embedders={f"embedder of {kb}": start["embedder"].remote() for kb in names},
        text_embedder="embedder of text",
        deadline_s=60.0,
        log=start["log"].remote(),
        breakers={kb: CircuitBreaker(1, 60.0) for kb in names},
    )


def with_breakers(retriever: Retriever, **changes) -> Retriever:
    return replace(retriever, breakers={kb: CircuitBreaker(1, 60.0) for kb in retriever.shards}, **changes)


GOOD, BAD = Query("a question"), Query("x" * 13)


def test_a_fault_of_the_program_is_raised_and_no_breaker_counts_it(retriever):
    asking = with_breakers(retriever)
    for _ in range(2):
        with pytest.raises(KeyError, match="thirteen"):
            asking.search_routed([("text", GOOD), ("flags", BAD)], 1)
    with pytest.raises(AttributeError):
        asking.search("text", [None], 1)
    assert {kb: breaker.failures for kb, breaker in asking.breakers.items()} == {"text": 0, "flags": 0}
    assert [[passage.id for passage in found] for found in asking.search_routed([("text", GOOD), ("flags", GOOD)], 1)] == [["p"], ["p"]]
    assert ray.get(retriever.log.totals.remote(), timeout=60)["errors"] == 0


def test_a_search_that_was_let_through_to_see_and_ran_into_a_fault_is_followed_by_another(retriever):
    asking = with_breakers(retriever)
    asking.breakers["text"] = CircuitBreaker(1, 60.0, failures=1, opened_at=-60.0, clock=lambda: 0.0)  # open, and its cool-down is over
    with pytest.raises(KeyError):
        asking.search("text", [BAD], 1)
    assert asking.search("text", [GOOD], 1)[0][0].id == "p"
    assert asking.breakers["text"].failures == 0


def test_an_embedder_that_is_gone_takes_only_its_own_knowledge_base_along(retriever):
    gone = ray.remote(num_cpus=0)(Embedder).remote()
    ray.kill(gone)
    asking = with_breakers(retriever, deadline_s=1.0, embedders=retriever.embedders | {"embedder of flags": gone})
    text, flags = asking.search_routed([("text", GOOD), ("flags", GOOD)], 1)
    assert text[0].id == "p"
    assert flags[0].error == "flags did not answer within 1 s (embedder: ActorDiedError)"
    assert {kb: breaker.failures for kb, breaker in asking.breakers.items()} == {"text": 0, "flags": 1}


class Scorer:
    def scores(self, asked):
        return [np.arange(len(passages), dtype=np.float32) for _, passages in asked]


def test_a_knowledge_base_that_is_gone_leaves_the_reranker_time_for_the_others(retriever):
    gone = ray.remote(num_cpus=0)(Shard).remote()
    ray.kill(gone)
    asking = with_breakers(
        retriever, deadline_s=1.0, shards=retriever.shards | {"flags": ((gone,),)}, reranker=ray.remote(num_cpus=0)(Scorer).remote()
    )
    call_replicas([Call((asking.reranker,), "scores", ([],))], 60.0)  # its process is up
    text, flags = asking.search_routed([("text", GOOD), ("flags", GOOD)], 1)
    assert text[0].id == "p"
    assert "ActorDiedError" in flags[0].error
    assert {kb: breaker.failures for kb, breaker in asking.breakers.items()} == {"text": 0, "flags": 1}
