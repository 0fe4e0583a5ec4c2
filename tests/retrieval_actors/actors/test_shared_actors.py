"""Small knowledge bases share one actor: the same answers as from an actor for each shard, and what happens to the actor costs time only."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace

import pytest
import ray

from retrieval_actors.actors.circuit_breaker import CircuitBreaker
from retrieval_actors.actors.start_actors import start_retrieval
from retrieval_actors.build.from_passages import write_knowledge_base
from retrieval_actors.config import RetrievalConfig
from retrieval_actors.records import Passage, Query

TOPICS = ["capital", "currency", "leader", "river"]
QUERIES = [Query(f"What is the {topic} of country {number}?") for number in (2, 7) for topic in TOPICS]
NAMES = {"text": 2, "table": 1, "flags": 1}  # name -> shards


def write(folder, models, name, of="country"):
    passages = [Passage(f"{topic}/{row}", f"The {topic} of {of} {row} is {name}{row}.") for row in range(12) for topic in TOPICS]
    card = {"retriever_name": f"{name} retriever", "description": "", "modality": "text", "embedder": "minilm", "lexical": True}
    vectors = models.embed([passage.text for passage in passages])
    return write_knowledge_base(folder / name, name=name, passages=passages, vectors=vectors, shards=NAMES[name], **card)


@pytest.fixture(scope="module")
def config(models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("kbs")
    for name in NAMES:
        write(folder, models, name)
    return RetrievalConfig(folders={name: str(folder / name) for name in NAMES}, deadline_s=100.0)


@pytest.fixture(scope="module")
def shared(models, config):
    retriever = start_retrieval(replace(config, hybrid=True), models_of=models)
    yield retriever
    retriever.close()


def answers(found):
    return [[(passage.id, passage.text, passage.score, passage.error) for passage in passages] for passages in found]


ASKED = [(name, query) for query in QUERIES for name in NAMES]


def test_knowledge_bases_that_share_an_actor_answer_as_with_an_actor_for_each_shard(models, config, shared):
    apart = start_retrieval(replace(config, hybrid=True, shared_mib=0), models_of=models)
    assert (len(apart.shard_actors()), len(shared.shard_actors())) == (4 + 3, 1)
    for lexical in (True, False):
        found = [answers((its if lexical else replace(its, lexical={})).search_routed(ASKED, 5)) for its in (apart, shared)]
        assert found[0] == found[1]
        assert {len(passages) for passages in found[0]} == {5}
    apart.close()


def test_a_killed_actor_costs_all_its_knowledge_bases_time_and_none_an_answer(shared):
    expected, errors = answers(shared.search_routed(ASKED, 3)), shared.stats()["errors"]
    ((actor, (shards, copy)),) = shared.shard_actors().items()
    assert (len(shards), copy) == (4 + 3, 0)
    process = ray.get(actor.ready.remote(), timeout=60)
    os.kill(process, signal.SIGKILL)
    assert answers(shared.search_routed(ASKED, 3)) == expected
    assert ray.get(actor.ready.remote(), timeout=60) != process
    assert ray.get(actor.health.remote(), timeout=60)["passages"] == 3 * 48
    assert shared.stats()["errors"] == errors


def test_a_knowledge_base_that_was_built_again_fails_alone_when_its_actor_is_restarted(models, config, tmp_path):
    folders = config.folders | {"flags": str(write(tmp_path, models, "flags").folder)}
    retriever = start_retrieval(replace(config, folders=folders), models_of=models)
    expected = answers(retriever.search("text", QUERIES, 3))
    write(tmp_path, models, "flags", of="flag")
    ((actor, _),) = retriever.shard_actors().items()
    os.kill(ray.get(actor.ready.remote(), timeout=60), signal.SIGKILL)
    assert answers(retriever.search("text", QUERIES, 3)) == expected  # and the actor is back
    hasty = replace(retriever, deadline_s=3.0, breakers={kb: CircuitBreaker(1, 600.0) for kb in NAMES})
    began = time.monotonic()
    flags, text = hasty.search_routed([("flags", QUERIES[0]), ("text", QUERIES[0])], 3)
    assert "flags did not answer within 3 s (" in flags[0].error
    assert "was replaced" in flags[0].error
    assert answers([text]) == expected[:1]
    assert {kb: breaker.failures for kb, breaker in hasty.breakers.items()} == {"text": 0, "table": 0, "flags": 1}
    assert "failed 1 times in a row" in hasty.search("flags", QUERIES[:1], 3)[0][0].error
    assert time.monotonic() - began < 30
    retriever.close()


def test_replicas_of_a_shared_actor_hold_the_same_and_one_is_enough(models, config):
    retriever = start_retrieval(replace(config, replicas=2), models_of=models)
    expected = answers(retriever.search_routed(ASKED, 3))
    (first, (shards, _)), (second, (same, _)) = retriever.shard_actors().items()
    assert shards == same
    assert len(shards) == sum(NAMES.values())
    ray.kill(first)
    assert answers(retriever.search_routed(ASKED, 3)) == expected
    ray.kill(second)
    gone = replace(retriever, deadline_s=1.0).search("text", QUERIES[:1], 3)
    assert "ActorDiedError" in gone[0][0].error
    retriever.close()
