"""Starts the actors of the knowledge bases, and finds those that run."""

from __future__ import annotations

import functools
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray
from ray.exceptions import RayActorError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from retrieval_actors.build import Progress
from retrieval_actors.circuit_breaker import CircuitBreaker
from retrieval_actors.config import RetrievalConfig
from retrieval_actors.embedder_actor import EmbedderActor
from retrieval_actors.embedders import check_embedder_name, model_of
from retrieval_actors.knowledge_base import KnowledgeBase, KnowledgeBaseError
from retrieval_actors.lexical_actor import LexicalActor
from retrieval_actors.memory_plan import MemoryPlan, plan_memory, spread, words_of
from retrieval_actors.reranker import check_reranker_name
from retrieval_actors.reranker_actor import RerankerActor
from retrieval_actors.retriever import RetrievalUnavailableError, Retriever
from retrieval_actors.search_log import SearchLog
from retrieval_actors.shard_actor import ShardActor

START_SECONDS = 300
"""Bound on starting the actors: loading an embedder on a busy laptop takes half a minute."""
NAMESPACE = "retrieval"


def start_retrieval(
    config: RetrievalConfig,
    progress: Progress | None = None,
    announce: Callable[[MemoryPlan], None] | None = None,
    models_of: Retriever | None = None,
) -> Retriever:
    """Verifies every folder, starts an actor per shard and replica and per embedding model, and returns when all of them have loaded.

    `models_of`: another retrieval with the same models, whose embedders and reranker this one uses as long as both run.

    `announce` is given the memory plan before anything is read, `progress` bytes of files checked, then how many actors are ready.
    Raises KnowledgeBaseError for a folder that is not whole, has another name than the configuration says, was built by an unknown embedder
    or one of another dimension, has no words where `hybrid` needs them, or needs more memory or GPUs than there are; ValueError for an
    unknown text embedder or reranker.
    """
    opened = [_open_as(name, folder, config.hybrid) for name, folder in config.folders.items()]
    check_embedder_name(config.text_embedder)
    names = dict.fromkeys([config.text_embedder, *(base.card.embedder for base in opened)])
    if config.reranker:
        check_reranker_name(config.reranker)
    _check_gpus(config, sum(base.card.shards for base in opened))
    resource = config.resource_of(config.gpus_per_shard)
    offered = {
        node["NodeID"]: int(node["Resources"].get("memory", 0))
        for node in ray.nodes()
        if node["Alive"] and (not resource or resource in node["Resources"])
    }
    if not offered:
        raise KnowledgeBaseError(f"retrieval.resource is {resource!r}, which no node has: start nodes with it, or leave it empty")
    plan = plan_memory(opened, config.replicas, list(offered.values()), config.hybrid)
    if announce and plan.needs:
        announce(plan)
    if plan.refusal():
        raise KnowledgeBaseError(plan.refusal())
    for base in opened:
        base.verify(functools.partial(progress, f"checking the files of {base.card.name}") if progress else None)
    retriever = _started(config, opened, list(names), plan, spread(plan.needs, offered), models_of)
    try:
        adopted = retriever.log.adopt.remote(retriever)
        _wait_until_ready(retriever, progress)
        ray.get(adopted, timeout=config.deadline_s)
        for base in opened:
            dimension = ray.get(retriever.embedders[base.card.embedder].dimension.remote(base.card.embedder), timeout=config.deadline_s)
            if dimension != base.card.dimension:
                found = f"has dimension {base.card.dimension}, embedder {base.card.embedder!r} makes {dimension}"
                raise KnowledgeBaseError(f"{base.folder / 'kb.json'} {found}: build it again with this embedder")
    except BaseException:
        retriever.close()
        raise
    return retriever


def running_retrievals() -> dict[str, Any]:
    """Name -> handle of the log of every retrieval on the cluster that this process is connected to."""
    named = ray.util.list_named_actors(all_namespaces=True)
    return {found["name"]: ray.get_actor(found["name"], NAMESPACE) for found in named if found["namespace"] == NAMESPACE}


def _started(
    config: RetrievalConfig,
    opened: Sequence[KnowledgeBase],
    names: list[str],
    plan: MemoryPlan,
    nodes: Mapping[tuple[str, int], Sequence[str]],
    models_of: Retriever | None,
) -> Retriever:
    lent = {name: models_of.embedders[name] for name in names if name in models_of.embedders} if models_of else {}
    reranker = models_of.reranker if models_of else None
    # A call to a dead actor fails at once, so that a replica can be asked: `fan_out` tries again.
    placement: dict[str, Any] = {"max_restarts": -1, "max_task_retries": 0, "scheduling_strategy": "SPREAD"}

    def reserved(cpus: float, gpus: float) -> dict[str, Any]:
        resource = config.resource_of(gpus)
        return {"num_cpus": cpus, "num_gpus": gpus, "resources": {resource: 0.001} if resource else {}, **placement}

    models = reserved(config.cpus_per_embedder, config.gpus_per_embedder)
    start_embedder = ray.remote(EmbedderActor).options(**models).remote
    processes = {
        model: start_embedder([name for name in names if model_of(name) == model], config.cache_size, config.embed_threads)
        for model in {model_of(name): None for name in names if name not in lent}
    }
    memory = {(need.kb, need.shard): need.resident_bytes for need in plan.needs}

    def replicas(base: KnowledgeBase, number: int) -> tuple[Any, ...]:
        arguments = (
            str(base.folder.resolve()),
            base.fingerprint,
            number,
            config.search_threads,
            config.gpus_per_shard > 0,
            config.gpu_float16,
        )
        needs = reserved(config.cpus_per_shard, config.gpus_per_shard)
        places = [NodeAffinitySchedulingStrategy(node, soft=True, _spill_on_unavailable=True) for node in nodes[base.card.name, number]]
        needs |= {"memory": memory[base.card.name, number]}
        return tuple(ray.remote(ShardActor).options(**needs | {"scheduling_strategy": place}).remote(*arguments) for place in places)

    def words(base: KnowledgeBase) -> Any:
        needs = reserved(config.cpus_per_shard, 0) | {"memory": memory[words_of(base.card.name), 0]}
        return ray.remote(LexicalActor).options(**needs).remote(str(base.folder.resolve()), base.fingerprint)

    if config.reranker and not reranker:
        reranker = ray.remote(RerankerActor).options(**models).remote(config.reranker, config.embed_threads)
    log = ray.remote(SearchLog).options(num_cpus=0, max_restarts=-1, name=f"{NAMESPACE}-{uuid.uuid4().hex[:8]}", namespace=NAMESPACE)
    return Retriever(
        catalog=tuple(base.card for base in opened),
        embedders={name: lent[name] if name in lent else processes[model_of(name)] for name in names},
        shards={base.card.name: tuple(replicas(base, number) for number in range(base.card.shards)) for base in opened},
        text_embedder=config.text_embedder,
        deadline_s=config.deadline_s,
        log=log.remote(),
        words={base.card.name: words(base) for base in opened} if config.hybrid else {},
        reranker=reranker if config.reranker else None,
        rerank_candidates=config.rerank_candidates,
        breakers={base.card.name: CircuitBreaker(config.failures_to_open, config.cooldown_s) for base in opened},
        lent=frozenset([*lent.values(), *([models_of.reranker] if models_of and models_of.reranker else [])]),
    )


def _open_as(name: str, folder: str, hybrid: bool) -> KnowledgeBase:
    base = KnowledgeBase.open(folder, verify=False)
    if base.card.name != name:
        raise KnowledgeBaseError(f"{base.folder / 'kb.json'} names {base.card.name!r}, the key retrieval.folders.{name} says {name!r}")
    try:
        check_embedder_name(base.card.embedder)
    except ValueError as error:
        raise KnowledgeBaseError(f"{base.folder / 'kb.json'}: {error}, and build it again") from error
    if hybrid and base.lexical_folder is None:
        raise KnowledgeBaseError(
            f"{base.folder / 'kb.json'} has no words, retrieval.hybrid=true needs them: build it again with lexical=true, or set it to false"
        )
    return base


def _check_gpus(config: RetrievalConfig, shards: int) -> None:
    """Ray would wait for GPUs that are not there without a word."""
    wanted, there = config.gpus_per_shard * shards * config.replicas + config.gpus_per_embedder, ray.cluster_resources().get("GPU", 0)
    if wanted > there:
        raise KnowledgeBaseError(
            f"retrieval.gpus_per_shard={config.gpus_per_shard:g} and gpus_per_embedder={config.gpus_per_embedder:g} ask for {wanted:g} GPUs for "
            f"{shards} shards x {config.replicas} replicas and the embedders, Ray has {there:g}: lower them, or set them to 0"
        )


def _wait_until_ready(retriever: Retriever, progress: Progress | None) -> None:
    waiting = [actor.ready.remote() for actor in retriever.actors() if actor is not retriever.log]
    total, end = len(waiting), time.monotonic() + START_SECONDS
    while waiting:
        ready, waiting = ray.wait(waiting, num_returns=1, timeout=max(0.0, end - time.monotonic()))
        if not ready:
            raise RetrievalUnavailableError(
                f"{len(waiting)} of {total} retrieval actors did not start in {START_SECONDS} s: are there free CPUs and memory?"
            )
        try:
            ray.get(ready, timeout=START_SECONDS)
        except RayActorError as error:
            said = str(error).strip().splitlines()[-1]
            raise RetrievalUnavailableError(f"a retrieval actor did not start: {said}") from error
        if progress:
            progress("starting retrieval actors", total - len(waiting), total)
