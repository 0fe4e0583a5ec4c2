"""The actors of a run, started in order: retrieval, rewards, the algorithm with its workers and learners. The rollout workers measure, too."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray

from experiments.cluster import placement
from experiments.cluster.ray_session import without_core_lines
from experiments.command_line.progress import Progress
from experiments.config import TrainConfig
from experiments.datasets import Dataset, ensure_knowledge_bases
from experiments.evaluation.evaluator import Evaluator
from experiments.run.found_steps_folder import with_found_steps, without_gold
from learner.question_ledger import ShuffledQuestions
from learner.step_grpo import StepGRPO
from retrieval_actors.actors.memory_plan import label_of
from retrieval_actors.actors.start_actors import start_retrieval
from retrieval_actors.sharded_search import Retriever
from rewards.actor import start_reward_actor


@dataclass(frozen=True)
class SharedServices:
    evaluator: Evaluator
    retriever: Retriever  # over the training knowledge bases
    evaluation_retriever: Retriever  # over those of the validation and held-out questions; may be the same one
    training_folders: Mapping[str, str]  # knowledge base -> its folder
    evaluation_folders: Mapping[str, str]

    def close(self) -> None:
        self.evaluator.close()
        for retriever in {id(found): found for found in (self.evaluation_retriever, self.retriever)}.values():
            retriever.close()


@dataclass(frozen=True)
class RunActors(SharedServices):
    algorithm: StepGRPO
    reward_actors: Sequence[Any]
    shared: bool  # several runs use the services, so `close` keeps them

    def fingerprints(self) -> dict[str, str]:
        """Training knowledge base -> fingerprint; a checkpoint can only be resumed with the same ones."""
        return {card.name: card.fingerprint for card in self.retriever.catalog}

    def by_role(self) -> dict[str, Any]:
        """Role -> actor handle. An actor that both retrievers share has its training role."""
        found = {f"rollout worker {number}": handle for number, handle in self.algorithm.workers.handles.items()}
        found |= {f"learner rank {number}": handle for number, handle in enumerate(self.algorithm.learner_group.ranks)}
        found |= {f"reward actor {number}": handle for number, handle in enumerate(self.reward_actors)}
        found |= {f"evaluation worker {number}": handle for number, handle in enumerate(self.evaluator.own_workers)}
        for retriever, suffix in ((self.evaluation_retriever, " of the evaluation"), (self.retriever, "")):
            for handle, (shards, copy) in retriever.shard_actors().items():
                found[f"knowledge base {label_of(shards)}{suffix}{f', replica {copy}' if copy else ''}"] = handle
            found |= {f"embedder {name}{suffix}": handle for name, handle in retriever.embedders.items()}
            found |= {f"reranker{suffix}": retriever.reranker} if retriever.reranker is not None else {}
            found[f"search log{suffix}"] = retriever.log
        return {role: handle for handle, role in {handle: role for role, handle in found.items()}.items()}

    def close(self) -> None:
        self.algorithm.stop()
        for actor in self.reward_actors:
            ray.kill(actor)
        if not self.shared:
            super().close()


def start_run_actors(
    config: TrainConfig, dataset: Dataset, policy: str, progress: Progress, shared: SharedServices | None = None
) -> RunActors:
    """Needs a running Ray. Missing knowledge bases are built. Raises RunConfigError where the cluster has no room, before anything is started."""
    if shared:
        progress.phase("start rewards, rollout workers, learner")
        config = placement.on_nodes_of_roles(config, ray.cluster_resources())
        return RunActors(**vars(shared), **_start_learning(config, dataset, policy, shared.retriever), shared=True)
    config = placement.placed_or_refused(config, dataset, progress)
    folders = _folders(dataset, progress)
    progress.phase("start retrieval, rewards, rollout workers, learner")
    retrievers = _start_retrievers(config, folders, progress)
    learning = _start_learning(config, dataset, policy, retrievers[0])
    evaluator = Evaluator(policy, config, learning["algorithm"].workers)
    return RunActors(evaluator, *retrievers, *folders, **learning, shared=False)


def with_gold(config: TrainConfig, dataset: Dataset, policy: str, actors: RunActors, progress: Progress) -> Dataset:
    """The data set with the gold steps that `data.gold` asks for; the algorithm asks its questions from now on."""
    if config.data.gold == "found":
        dataset = with_found_steps(config, policy, dataset, actors.evaluator, actors.retriever, progress)
    elif config.data.gold == "hidden":
        dataset = replace(dataset, train=without_gold(dataset))
    actors.algorithm.data.questions = list(dataset.train)
    return dataset


def start_shared_services(config: TrainConfig, dataset: Dataset, policy: str, progress: Progress) -> SharedServices:
    """The services of several runs in turn. Raises RunConfigError if the services and one run do not fit."""
    config = placement.placed_or_refused(config, dataset, progress, "beside")
    folders = _folders(dataset, progress)
    progress.phase("start retrieval, evaluation workers")
    return SharedServices(Evaluator(policy, config), *_start_retrievers(config, folders, progress), *folders)


def _folders(dataset: Dataset, progress: Progress) -> tuple[dict[str, str], dict[str, str]]:
    progress.phase("knowledge bases")
    return ensure_knowledge_bases(dataset.training_kbs, progress.detail), ensure_knowledge_bases(dataset.evaluation_kbs, progress.detail)


def _start_retrievers(config: TrainConfig, folders: Sequence[dict[str, str]], progress: Progress) -> tuple[Retriever, Retriever]:
    """Retrievers of training and evaluation: the same one, or, for different knowledge bases, two that share models."""

    def start(folders: dict[str, str], models_of: Retriever | None = None) -> Retriever:
        retrieval = replace(config.retrieval, folders=folders)
        return start_retrieval(retrieval, announce=lambda plan: progress.if_verbose(plan.line()), models_of=models_of)

    training = start(folders[0])
    return training, training if folders[1] == folders[0] else start(folders[1], training)


def _start_learning(config: TrainConfig, dataset: Dataset, policy: str, retriever: Retriever) -> dict[str, Any]:
    train = config.train
    reward_actors = [start_reward_actor(retriever, config.reward, placement.CPUS_PER_REWARD_ACTOR) for _ in range(config.reward.actors)]
    settings = StepGRPO.get_default_config()
    settings.env_runners(
        num_env_runners=train.num_rollout_workers,
        num_cpus_per_env_runner=placement.CPUS_PER_ROLLOUT_WORKER,
        num_gpus_per_env_runner=train.gpus_per_rollout_worker,
        custom_resources_per_env_runner=placement.on_nodes_with(config.rollout.resource),
    )
    settings.training(
        policy_path=policy,
        rollout=config.rollout,
        learner=replace(config.learner, seed=train.seed),
        retriever=None if config.rollout.mode == "offline" else retriever,
        reward_actors=reward_actors,
        data=ShuffledQuestions(dataset.train, train.seed),
        questions_per_iteration=train.questions_per_iteration,
        questions_per_chunk=-(-train.questions_per_iteration // train.num_rollout_workers),
        overlap=train.overlap,
        trace=train.trace,
        sampling_seed=train.seed,
        deadline_s=config.learner.deadline_s,
    )
    with without_core_lines():
        return {"algorithm": settings.build_algo(), "reward_actors": reward_actors}
