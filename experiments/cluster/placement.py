"""Resources of a run: what its processes request of Ray, checked by a placement group before anything is built or started.

Ray waits silently for resources that no node has. So a placement group of all processes is created first, and removed when it is ready. If
it is not ready within `ray.join_s` (an autoscaler may start nodes for it), the run is refused with one line that names what is missing. Where
a node has the custom resource `learner`, `rollout`, `retrieval` or `rewards`, the processes of that role run on such nodes only."""

import math
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import ray
import yaml
from ray._private.state import available_resources_per_node
from ray.util.placement_group import placement_group, remove_placement_group
from rich.table import Table

from experiments.cluster.findings import number_table
from experiments.command_line.progress import Progress
from experiments.config import REPOSITORY, RunConfigError, TrainConfig
from experiments.datasets import EMBEDDERS, Dataset, KnowledgeBaseSource
from retrieval_actors.actors.memory_plan import PROCESS_BYTES, plan_memory, readable
from retrieval_actors.config import RetrievalConfig
from retrieval_actors.embedders.registry import model_of
from retrieval_actors.knowledge_base import MANIFEST, KnowledgeBase

CPUS_PER_ROLLOUT_WORKER, CPUS_PER_REWARD_ACTOR = 0.5, 0.1
UNBUILT_SHARDS = 1  # of a knowledge base that the data set brings and that is built first: those are small
WAIT_S = 30.0  # for one placement group to be ready; tried again until `ray.join_s` is over
SETTINGS = {  # role -> what lowers its requests
    "learner": "learner.num_learners or learner.gpus_per_learner",
    "rollout": "train.num_rollout_workers or train.gpus_per_rollout_worker",
    "evaluation": "train.num_rollout_workers or train.gpus_per_rollout_worker",
    "embedder": "retrieval.gpus_per_embedder or retrieval.cpus_per_embedder",
    "reranker": "retrieval.gpus_per_embedder or retrieval.cpus_per_embedder",
    "shard": "retrieval.replicas or retrieval.cpus_per_shard",
    "rewards": "reward.actors",
}
Evaluation = Literal["by rollout", "beside", "only"]  # who measures: rollout workers, or workers of their own in a study and `evaluate`
Node = Mapping[str, float]  # resource -> amount, as Ray counts it: CPU, GPU, memory in bytes, custom resources


@dataclass(frozen=True)
class ResourceRequest:
    """A number of equal processes, and what each requests; memory in bytes."""

    role: str  # one of `SETTINGS`
    count: int
    cpus: float
    gpus: float = 0.0
    memory: int = 0
    resource: str = ""  # custom resource of the nodes that it runs on; empty: any node
    detail: str = ""  # tells requests of one role apart: `text, shard 0`

    @property
    def label(self) -> str:
        return f"{self.role} ({self.detail})" if self.detail else self.role

    @property
    def bundle(self) -> dict[str, float]:
        """Resources of one process, for a placement group."""
        wanted = {"CPU": float(self.cpus), "GPU": float(self.gpus), "memory": float(self.memory), **on_nodes_with(self.resource)}
        return {name: amount for name, amount in wanted.items() if amount}


def on_nodes_with(resource: str) -> dict[str, float]:
    """Ray's `resources` for a process on a node with this custom resource: so little of it that it never runs out."""
    return {resource: 0.001} if resource else {}


def on_nodes_of_roles(config: TrainConfig, there: Collection[str]) -> TrainConfig:
    """Fills the empty `resource` settings of every role whose resource the cluster has. `there`: resources of the cluster."""
    retrieval = config.retrieval
    learner, rollout, searches, rewards = (role if role in there else "" for role in ("learner", "rollout", "retrieval", "rewards"))
    on_gpu = retrieval.gpu_resource or retrieval.resource or rollout
    learner, rollout = config.learner.resource or learner, config.rollout.resource or rollout
    if config.train.placement == "colocated":
        learner = rollout = config.learner.resource or rollout
    return replace(
        config,
        learner=replace(config.learner, resource=learner),
        rollout=replace(config.rollout, resource=rollout),
        retrieval=replace(retrieval, resource=retrieval.resource or searches, gpu_resource=on_gpu),
        reward=replace(config.reward, resource=config.reward.resource or rewards),
    )


def requests_of(
    config: TrainConfig, kbs: Sequence[Sequence[KnowledgeBaseSource]], evaluation: Evaluation = "by rollout"
) -> list[ResourceRequest]:
    """All processes of a run, or those of `r1-router evaluate`. `config`: from `on_nodes_of_roles`; `kbs`: from `knowledge_bases_of`."""
    train, learner, resource = config.train, config.learner, config.rollout.resource
    workers = train.num_rollout_workers, CPUS_PER_ROLLOUT_WORKER
    measuring = ResourceRequest("evaluation", *workers, train.gpus_per_rollout_worker, resource=resource)
    if evaluation == "only":
        return [*_retrieval(config.retrieval, kbs), measuring]
    learners = ResourceRequest(
        "learner", learner.num_learners, learner.cpus_per_learner, learner.gpus_per_learner, resource=learner.resource
    )
    if train.replay_rollouts:
        return [learners]
    rollout = ResourceRequest("rollout", *workers, train.gpus_per_rollout_worker, resource=resource)
    rewards = ResourceRequest("rewards", config.reward.actors, CPUS_PER_REWARD_ACTOR, resource=config.reward.resource)
    return [*_retrieval(config.retrieval, kbs), rewards, rollout, learners, *([measuring] if evaluation == "beside" else [])]


def _retrieval(retrieval: RetrievalConfig, kbs: Sequence[Sequence[KnowledgeBaseSource]]) -> Iterator[ResourceRequest]:
    unbuilt = [source for group in kbs for source in group if not (source.folder / MANIFEST).is_file()]
    built = [[KnowledgeBase.open(source.folder, verify=False) for source in group if source not in unbuilt] for group in kbs]
    embedders = [retrieval.text_embedder, *(base.card.embedder for group in built for base in group)]
    embedders += [EMBEDDERS.get(source.modality or source.name, retrieval.text_embedder) for source in unbuilt]
    embedder = ResourceRequest(
        "embedder", 1, retrieval.cpus_per_embedder, retrieval.gpus_per_embedder, resource=retrieval.embedder_resource
    )
    yield from (replace(embedder, detail=model) for model in dict.fromkeys(map(model_of, embedders)))
    if retrieval.reranker:
        yield replace(embedder, role="reranker", detail=retrieval.reranker)
    shard = ResourceRequest("shard", retrieval.replicas, retrieval.cpus_per_shard, resource=retrieval.resource)
    for group in built:
        for actor in plan_memory(group, retrieval.replicas, [], retrieval.hybrid, retrieval.shared_mib).actors:
            yield replace(shard, memory=actor.resident_bytes, detail=actor.label)
    for source in unbuilt:
        detail = f"{source.folder.parent.name}/{source.name}, built first"
        yield replace(shard, count=UNBUILT_SHARDS * retrieval.replicas, memory=PROCESS_BYTES, detail=detail)


def knowledge_bases_of(dataset: Dataset | None, evaluation: Evaluation = "by rollout") -> list[Sequence[KnowledgeBaseSource]]:
    """The knowledge bases of each retrieval: of that of training and that of evaluation, or of the one that is both."""
    if dataset is None:
        return []
    used = [dataset.evaluation_kbs] if evaluation == "only" else [dataset.training_kbs, dataset.evaluation_kbs]
    return list({tuple(source.folder for source in kbs): kbs for kbs in used}.values())


def cluster_file_nodes(name: str | Path, workers: str = "min_workers") -> list[dict[str, float]]:
    """Resources of each node, head included, that a cluster file starts with, or can grow to (`max_workers`). Raises RunConfigError."""
    path = next((path for path in (Path(name), REPOSITORY / name) if path.is_file()), None)
    if path is None:
        raise RunConfigError(f"ray.cluster_file is {str(name)!r}: no such file; expected a file of Ray's launcher, or '' for none")
    cluster = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(cluster, dict) or not {"available_node_types", "head_node_type"} <= cluster.keys():
        raise RunConfigError(f"ray.cluster_file is {path}: no file of Ray's launcher; expected available_node_types and head_node_type")
    nodes: list[dict[str, float]] = []
    for kind, node in cluster["available_node_types"].items():
        count = 1 if kind == cluster["head_node_type"] else max(node.get("min_workers", 0), node.get(workers, 0))
        nodes += [{"memory": math.inf} | node["resources"]] * count  # without a number the launcher uses all memory of the machine
    return nodes


def free_resources() -> list[dict[str, float]]:
    """What is free on each node of the cluster that this process is connected to."""
    return [dict(node) for node in available_resources_per_node().values()]


def missing(requests: Sequence[ResourceRequest], nodes: Sequence[Node]) -> str:
    """The first request that does not fit, in one line; empty where the totals are enough (each node may still have too little)."""
    for number, request in enumerate(requests, 1):
        allowed = [node for node in nodes if not request.resource or request.resource in node]
        of_nodes = f" on nodes with the resource {request.resource!r}" if request.resource else ""
        for name, amount in request.bundle.items():
            same = [other for other in requests[:number] if not request.resource or other.resource == request.resource]
            wanted = sum(other.count * other.bundle.get(name, 0.0) for other in same)
            there, largest = sum(node.get(name, 0.0) for node in allowed), max((node.get(name, 0.0) for node in allowed), default=0.0)
            if wanted > there + 1e-6 or amount > largest + 1e-6:
                amounts = (amount, wanted, there, largest)
                each, total, have, most = (readable(x) if name == "memory" else f"{x:g} {name}" for x in amounts)
                return (
                    f"no room for {request.count} x {request.label}: each requests {each}{of_nodes}, {total} with what comes before it; "
                    f"there: {have} on {len(allowed)} nodes, at most {most} on one; lower {SETTINGS[request.role]}, or add nodes "
                    "(ray.join_s=600 waits for nodes that are still joining)"
                )
    return ""


def placed_or_refused(
    config: TrainConfig, dataset: Dataset | None, progress: Progress, evaluation: Evaluation = "by rollout"
) -> TrainConfig:
    """Waits up to `ray.join_s` seconds until all processes fit; returns `on_nodes_of_roles`. Raises RunConfigError if they do not."""
    end = time.monotonic() + (config.ray.join_s or WAIT_S)
    while True:
        placed = on_nodes_of_roles(config, ray.cluster_resources())
        wanted = requests_of(placed, knowledge_bases_of(dataset, evaluation), evaluation)
        problem = missing(wanted, free_resources())
        waits = config.ray.join_s or not problem
        if waits and _fits(wanted, max(1.0, min(WAIT_S, end - time.monotonic()))):
            break
        problem = problem or "no room for all processes: the totals are enough, but not on single nodes; lower the largest, or add nodes"
        if not waits or time.monotonic() >= end:
            raise RunConfigError(problem)
        progress.say(f"waiting for room, {end - time.monotonic():.0f} s left: {problem}", style="dim")
    progress.if_verbose(requests_table(wanted))
    return placed


def _fits(requests: Sequence[ResourceRequest], seconds: float) -> bool:
    bundles = [request.bundle for request in requests for _ in range(request.count) if request.bundle]
    if not bundles:
        return True
    group = placement_group(bundles, strategy="PACK")
    try:
        return group.wait(seconds)
    finally:
        remove_placement_group(group)


def requests_table(requests: Sequence[ResourceRequest]) -> Table:
    rows = []
    for request in requests:
        n, memory = request.count, readable(request.memory * request.count) if request.memory else ""
        rows.append((request.label, str(n), f"{request.cpus * n:g}", f"{request.gpus * n:g}", memory, request.resource or "any"))
    return number_table("what the run requests", ("role", "processes", "CPUs", "GPUs", "memory", "nodes with"), rows)
