"""Starts the actors of the knowledge bases, and finds running ones."""

import functools
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from retrieval_actors.actors.circuit_breaker import CircuitBreaker
from retrieval_actors.actors.memory_plan import MemoryPlan, plan_memory
from retrieval_actors.actors.search_actors import EmbedderActor, RerankerActor, ShardActor
from retrieval_actors.actors.search_log import SearchLog
from retrieval_actors.build.from_passages import Progress
from retrieval_actors.config import RetrievalConfig
from retrieval_actors.embedders.registry import check_embedder_name, model_of
from retrieval_actors.embedders.text import check_reranker_name
from retrieval_actors.knowledge_base import MANIFEST, KnowledgeBase, KnowledgeBaseError
from retrieval_actors.records import LEXICAL_SHARD
from retrieval_actors.sharded_search import RetrievalUnavailableError, Retriever

START_SECONDS = 300  # for all actors together: loading an embedder on a busy laptop takes half a minute
NAMESPACE = "retrieval"


def start_retrieval(
    config: RetrievalConfig,
    progress: Progress | None = None,
    announce: Callable[[MemoryPlan], None] | None = None,
    models_of: Retriever | None = None,
) -> Retriever:
    """Verifies every folder, starts the actors, and returns when all of them have loaded.
    `models_of`: a running retrieval whose embedders and reranker are used, too. `announce` gets the memory plan before any file is read.
    Raises KnowledgeBaseError, ValueError for an unknown embedder or reranker, RetrievalUnavailableError if an actor does not start."""
    bases = [open_configured(name, folder, config.hybrid) for name, folder in config.folders.items()]
    check_embedder_name(config.text_embedder)
    if config.reranker:
        check_reranker_name(config.reranker)
    if config.gpus_per_embedder > (available := ray.cluster_resources().get("GPU", 0)):  # Ray would wait forever for them
        found = f"retrieval.gpus_per_embedder={config.gpus_per_embedder:g}, Ray has {available:g} GPUs"
        raise KnowledgeBaseError(f"{found}: lower it, or set it to 0")
    resource = config.resource
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"] and (not resource or resource in node["Resources"])]
    if not nodes:
        raise KnowledgeBaseError(f"retrieval.resource is {resource!r}, which no node has: start nodes with it, or leave it empty")
    plan = plan_memory(bases, config.replicas, [int(node.get("memory", 0)) for node in nodes], config.hybrid, config.shared_mib)
    if announce and plan.needs:
        announce(plan)
    if plan.refusal():
        raise KnowledgeBaseError(plan.refusal())
    for base in bases:
        base.verify(functools.partial(progress, f"checking the files of {base.card.name}") if progress else None)
    retriever = _start_actors(config, bases, plan, models_of)
    try:
        adopted = retriever.log.adopt.remote(retriever)
        _wait_until_ready(retriever, progress)
        ray.get(adopted, timeout=config.deadline_s)
        for base in bases:
            name = base.card.embedder
            dimension = ray.get(retriever.embedders[name].dimension.remote(name), timeout=config.deadline_s)
            if dimension != base.card.dimension:
                found = f"has dimension {base.card.dimension}, embedder {name!r} makes {dimension}"
                raise KnowledgeBaseError(f"{base.folder / MANIFEST} {found}: build it again with this embedder")
    except BaseException:
        retriever.close()
        raise
    return retriever


def running_retrievals() -> dict[str, Any]:
    """Name -> handle of the search log of every retrieval on the cluster that this process is connected to."""
    named = ray.util.list_named_actors(all_namespaces=True)
    return {found["name"]: ray.get_actor(found["name"], NAMESPACE) for found in named if found["namespace"] == NAMESPACE}


def _start_actors(config: RetrievalConfig, bases: Sequence[KnowledgeBase], plan: MemoryPlan, models_of: Retriever | None) -> Retriever:
    def start(kind: type, *arguments: Any, cpus: float, gpus: float = 0, resource: str = config.resource, **options: Any) -> Any:
        resources = {resource: 0.001} if resource else {}
        # A call to a dead actor fails at once, so that a replica can be asked: `call_replicas` tries again.
        options |= {"max_restarts": -1, "max_task_retries": 0, "scheduling_strategy": "SPREAD"}
        return ray.remote(kind).options(num_cpus=cpus, num_gpus=gpus, resources=resources, **options).remote(*arguments)

    def start_model(kind: type, *arguments: Any) -> Any:
        cpus, gpus, resource = config.cpus_per_embedder, config.gpus_per_embedder, config.embedder_resource
        return start(kind, *arguments, config.embed_threads, cpus=cpus, gpus=gpus, resource=resource)

    content = {base.card.name: (str(base.folder.resolve()), base.fingerprint) for base in bases}
    holders: dict[tuple[str, int], list[Any]] = {}  # (knowledge base, shard) -> replicas of the actor that holds it
    for need in plan.actors:
        shards = {(shard.kb, shard.shard): content[shard.kb] for shard in need.shards}
        replicas = [start(ShardActor, shards, cpus=config.cpus_per_shard, memory=need.resident_bytes) for _ in range(plan.replicas)]
        holders.update((shard, replicas) for shard in shards)
    names = dict.fromkeys([config.text_embedder, *(base.card.embedder for base in bases)])
    embedders = {name: models_of.embedders[name] for name in names if name in models_of.embedders} if models_of else {}
    reranker = models_of.reranker if models_of else None
    borrowed = frozenset([*embedders.values(), *([reranker] if reranker else [])])
    for model in dict.fromkeys(model_of(name) for name in names if name not in embedders):
        same = [name for name in names if model_of(name) == model]
        embedders |= dict.fromkeys(same, start_model(EmbedderActor, same))
    if config.reranker and not reranker:
        reranker = start_model(RerankerActor, config.reranker)
    return Retriever(
        catalog=tuple(base.card for base in bases),
        embedders=embedders,
        shards={base.card.name: [holders[base.card.name, number] for number in range(base.card.shards)] for base in bases},
        text_embedder=config.text_embedder,
        deadline_s=config.deadline_s,
        log=start(SearchLog, cpus=0, name=f"{NAMESPACE}-{uuid.uuid4().hex[:8]}", namespace=NAMESPACE),
        lexical={base.card.name: holders[base.card.name, LEXICAL_SHARD] for base in bases} if config.hybrid else {},
        reranker=reranker if config.reranker else None,
        breakers={base.card.name: CircuitBreaker() for base in bases},
        borrowed=borrowed,
    )


def open_configured(name: str, folder: str, hybrid: bool) -> KnowledgeBase:
    base = KnowledgeBase.open(folder, verify=False)
    manifest = base.folder / MANIFEST
    if base.card.name != name:
        raise KnowledgeBaseError(f"{manifest} names {base.card.name!r}, the key retrieval.folders.{name} says {name!r}")
    try:
        check_embedder_name(base.card.embedder)
    except ValueError as error:
        raise KnowledgeBaseError(f"{manifest}: {error}, and build it again") from error
    if hybrid and base.lexical_folder is None:
        advice = "build it again with lexical=true, or set it to false"
        raise KnowledgeBaseError(f"{manifest} has no lexical index, which retrieval.hybrid=true needs: {advice}")
    return base


def _wait_until_ready(retriever: Retriever, progress: Progress | None) -> None:
    waiting = [actor.ready.remote() for actor in retriever.actors() if actor is not retriever.log]
    total, end = len(waiting), time.monotonic() + START_SECONDS
    while waiting:
        ready, waiting = ray.wait(waiting, num_returns=1, timeout=max(0.0, end - time.monotonic()))
        if not ready:
            found = f"{len(waiting)} of {total} retrieval actors did not start in {START_SECONDS} s"
            raise RetrievalUnavailableError(f"{found}: are there free CPUs and memory?")
        try:
            ray.get(ready, timeout=START_SECONDS)
        except (RayActorError, RayTaskError) as error:
            raise RetrievalUnavailableError(f"a retrieval actor did not start: {str(error).strip().splitlines()[-1]}") from error
        if progress:
            progress("starting retrieval actors", total - len(waiting), total)
