"""The lines of `r1-router kb status`: the contents of a folder, and the state of the retrieval actors on this cluster."""

import collections
from collections.abc import Iterator
from typing import Any

import ray

from experiments.config import RunConfigError
from retrieval_actors.actors.memory_plan import label_of, readable
from retrieval_actors.actors.start_actors import running_retrievals
from retrieval_actors.knowledge_base import KnowledgeBase
from retrieval_actors.sharded_search import Retriever

ANSWER_SECONDS = 30


def card_lines(base: KnowledgeBase) -> Iterator[str]:
    card, size = base.card, readable(sum(entry["bytes"] for entry in base.manifest["files"].values()))
    yield str(base.folder)
    for key in ("name", "retriever_name", "description", "modality", "fingerprint"):
        yield f"  {key.replace('_', ' ')}: {getattr(card, key)}"
    yield f"  passages: {card.passages:,} in {card.shards} shards, {size}"
    yield f"  embedder: {card.embedder}, {card.dimension} numbers a vector"


def retrieval_lines(name: str, log: Any) -> Iterator[str]:
    health, retriever = ray.get([log.health.remote(), log.retriever.remote()], timeout=ANSWER_SECONDS)
    if retriever is None:
        yield f"{name} is starting, or its log was restarted"
        return
    yield f"{name}: cache hits of query embeddings {retriever.stats()['cache_hit_rate']:.1%}"
    for card in retriever.catalog:
        seen = collections.defaultdict(float, health.get(card.name, {}))
        counts = f"{seen['queries']:,.0f} queries ({seen['queries_per_second']:,.1f}/s), {seen['errors']:,.0f} errors"
        yield f"  {card.name}: {card.passages:,} passages, {counts}, p50 {seen['p50_ms']:.1f} ms, p99 {seen['p99_ms']:.1f} ms"
    asked = {actor.health.remote(): f"  {label_of(shards)}, replica {copy}" for actor, (shards, copy) in retriever.shard_actors().items()}
    ray.wait(list(asked), num_returns=len(asked), timeout=5)
    for reference, shards in asked.items():
        try:
            found = ray.get(reference, timeout=0)
            yield f"{shards}: process {found['pid']:.0f}, {found['passages']:,.0f} passages, {readable(found['memory'])}"
        except ray.exceptions.GetTimeoutError:
            yield f"{shards}: loading or busy"
        except ray.exceptions.RayActorError:
            yield f"{shards}: dead, being restarted"


def find_running(kb: str) -> Retriever:
    """The retriever on this cluster that has the knowledge base. Raises RunConfigError where none has it."""
    answers = [ray.get(log.retriever.remote(), timeout=ANSWER_SECONDS) for log in running_retrievals().values()]
    known = {card.name: retriever for retriever in answers if retriever for card in retriever.catalog}
    if kb not in known:
        raise RunConfigError(f"{kb!r} is neither a folder nor a knowledge base that runs here ({', '.join(sorted(known)) or 'none does'})")
    return known[kb]
