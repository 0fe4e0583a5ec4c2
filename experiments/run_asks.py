"""What a run asks of Ray: its processes in the order in which they are started, each with CPUs, GPUs, memory and the nodes it may run on.

Custom resources name the roles: where a node has the resource `learner`, `rollout`, `retrieval` or `rewards`, the processes of that role run on
such nodes only; a cluster without them, and a laptop, run everything anywhere.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

from experiments.config import TrainConfig
from experiments.datasets import EMBEDDERS, KnowledgeBaseSource
from experiments.placement import Ask
from retrieval_actors.embedders import model_of
from retrieval_actors.knowledge_base import MANIFEST, KnowledgeBase
from retrieval_actors.memory_plan import PROCESS_BYTES, plan_memory

CPUS_PER_ROLLOUT_WORKER = 0.5
CPUS_PER_REWARD_ACTOR = 0.1
SHARDS_TO_BE_BUILT = 2
"""Of a knowledge base that a data set brings and that is built first."""


@dataclass(frozen=True)
class RoleResources:
    """Custom resource of the nodes of each role; empty: any node."""

    learner: str = ""
    rollout: str = ""
    retrieval: str = ""
    retrieval_on_gpu: str = ""
    rewards: str = ""

    @classmethod
    def of(cls, config: TrainConfig, there: Collection[str]) -> RoleResources:
        """`there`: custom resources of the cluster. `learner.resource` and `retrieval.resource` name others, and are asked for in any case."""
        rollout = _if_there("rollout", there)
        learner = config.learner.resource or _if_there("learner", there)
        if config.train.placement == "colocated":  # the same nodes for both
            learner = rollout = config.learner.resource or rollout
        return cls(
            learner=learner,
            rollout=rollout,
            retrieval=config.retrieval.resource or _if_there("retrieval", there),
            retrieval_on_gpu=config.retrieval.gpu_resource or config.retrieval.resource or _if_there("rollout", there),
            rewards=_if_there("rewards", there),
        )


def on_nodes_with(resource: str) -> dict[str, float]:
    """Ray's `resources` for a process that shall run on a node with this custom resource: so little of it that it never runs out."""
    return {resource: 0.001} if resource else {}


def with_roles(config: TrainConfig, roles: RoleResources) -> TrainConfig:
    """The configuration, with the nodes of learners and retrieval said."""
    return replace(
        config,
        learner=replace(config.learner, resource=roles.learner),
        retrieval=replace(config.retrieval, resource=roles.retrieval, gpu_resource=roles.retrieval_on_gpu),
    )


def asks_of(config: TrainConfig, roles: RoleResources, knowledge_bases: Sequence[Sequence[KnowledgeBaseSource]]) -> list[Ask]:
    """All processes of a run. `knowledge_bases`: those of training and, if they are others, those of evaluation."""
    train, learner = config.train, config.learner
    learners = Ask(
        "learner",
        learner.num_learners,
        learner.cpus_per_learner,
        learner.gpus_per_learner,
        resource=roles.learner,
        setting="learner.num_learners or learner.gpus_per_learner",
        together=True,
    )
    if train.replay_rollouts:
        return [learners]
    rollout = Ask(
        "rollout",
        train.num_rollout_workers,
        CPUS_PER_ROLLOUT_WORKER,
        train.gpus_per_rollout_worker,
        resource=roles.rollout,
        setting="train.num_rollout_workers or train.gpus_per_rollout_worker",
    )
    evaluation = replace(
        rollout, role="evaluation", gpus=config.evaluation_gpus, setting="train.num_rollout_workers or train.gpus_per_evaluation_worker"
    )
    rewards = Ask("rewards", config.reward.actors, CPUS_PER_REWARD_ACTOR, resource=roles.rewards, setting="reward.actors")
    return [*_retrieval(config, roles, knowledge_bases), rewards, rollout, learners, evaluation]


def asks_of_evaluation(config: TrainConfig, roles: RoleResources, knowledge_bases: Sequence[Sequence[KnowledgeBaseSource]]) -> list[Ask]:
    """The processes of `experiments.evaluate`, which searches the knowledge bases of evaluation, the last ones, alone."""
    asks = asks_of(replace(config, train=replace(config.train, replay_rollouts="")), roles, knowledge_bases[-1:])
    return [ask for ask in asks if ask.role not in ("learner", "rollout", "rewards")]


def cpus_of(asks: Sequence[Ask]) -> float:
    return sum(ask.count * ask.cpus for ask in asks)


def _retrieval(config: TrainConfig, roles: RoleResources, knowledge_bases: Sequence[Sequence[KnowledgeBaseSource]]) -> Iterator[Ask]:
    retrieval = config.retrieval
    there = [[source for source in sources if (source.folder / MANIFEST).is_file()] for sources in knowledge_bases]
    opened = [[KnowledgeBase.open(source.folder, verify=False) for source in sources] for sources in there]
    embedders = [base.card.embedder for bases in opened for base in bases]
    unbuilt = [source for sources in knowledge_bases for source in sources if not (source.folder / MANIFEST).is_file()]
    embedders += [EMBEDDERS.get(source.name, retrieval.text_embedder) for source in unbuilt]
    models = {model_of(name): None for name in [retrieval.text_embedder, *embedders]}
    one = Ask(
        "embedder",
        1,
        retrieval.cpus_per_embedder,
        retrieval.gpus_per_embedder,
        resource=roles.retrieval_on_gpu if retrieval.gpus_per_embedder else roles.retrieval,
        setting="retrieval.gpus_per_embedder or retrieval.cpus_per_embedder",
    )
    yield from (replace(one, detail=model) for model in models)
    if retrieval.reranker:
        yield replace(one, role="reranker", detail=retrieval.reranker)
    shard = replace(
        one,
        role="shard",
        count=retrieval.replicas,
        cpus=retrieval.cpus_per_shard,
        gpus=retrieval.gpus_per_shard,
        resource=roles.retrieval_on_gpu if retrieval.gpus_per_shard else roles.retrieval,
        setting="retrieval.replicas or retrieval.gpus_per_shard",
    )
    names = Counter(source.name for sources in knowledge_bases for source in sources)
    for number, bases in enumerate(opened):
        whose = "" if number == 0 else "evaluation "
        for need in sorted(plan_memory(bases, retrieval.replicas, [], retrieval.hybrid).needs, key=lambda need: -need.resident_bytes):
            kb = f"{whose if names[need.kb] > 1 else ''}{need.kb}"
            yield replace(shard, count=need.replicas, memory=need.resident_bytes, detail=f"{kb}, {_words_or(need.shard, need.index)}")
    for source in unbuilt:
        yield replace(
            shard,
            count=SHARDS_TO_BE_BUILT * retrieval.replicas,
            memory=PROCESS_BYTES,
            detail=f"{source.folder.parent.name}/{source.name}, built first",
        )


def _words_or(shard: int, index: str) -> str:
    return "words" if index == "BM25" else f"shard {shard}"


def _if_there(name: str, there: Collection[str]) -> str:
    return name if name in there else ""
