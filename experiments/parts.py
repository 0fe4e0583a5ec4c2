"""The parts of a run, built in order: knowledge bases, retrieval, rewards, the algorithm, the evaluation workers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import ray

from experiments.config import TrainConfig
from experiments.datasets import Dataset, ensure_knowledge_bases
from experiments.evaluate import Evaluator
from experiments.failures.supervisor import Supervisor
from experiments.placement_table import placed_or_refused
from experiments.progress import Progress
from experiments.run_asks import CPUS_PER_REWARD_ACTOR, CPUS_PER_ROLLOUT_WORKER, RoleResources, on_nodes_with, with_roles
from experiments.run_folder import RunFolder
from experiments.tally import Tally
from experiments.tracking.tracker import Tracker
from learner.question_source import ShuffledQuestions
from learner.step_grpo import StepGRPO
from learner.step_grpo_config import StepGRPOConfig
from retrieval_actors.memory_plan import MemoryPlan
from retrieval_actors.retriever import Retriever
from retrieval_actors.start import start_retrieval
from rewards.actor import start_reward_actor


@dataclass(frozen=True)
class Ground:
    """What several runs can stand on, one after the other: knowledge bases that are loaded, and workers that measure policies."""

    evaluator: Evaluator
    retriever: Retriever
    """Over the training knowledge bases."""
    evaluation_retriever: Retriever
    """Over those of the validation and held-out questions; the same one where the data set does not tell them apart."""
    training_folders: Mapping[str, str]
    """Training knowledge base -> where it lies."""
    evaluation_folders: Mapping[str, str]
    roles: RoleResources
    """Which nodes the processes of a run go to."""

    def close(self) -> None:
        self.evaluator.close()
        for retriever in {id(found): found for found in (self.evaluation_retriever, self.retriever)}.values():
            retriever.close()


@dataclass(frozen=True)
class Parts:
    """What runs in Ray."""

    algorithm: StepGRPO
    reward_actors: Sequence[Any]
    ground: Ground
    lent: bool = False
    """The ground is somebody else's, and stays when this run is over."""

    @property
    def evaluator(self) -> Evaluator:
        return self.ground.evaluator

    @property
    def retriever(self) -> Retriever:
        return self.ground.retriever

    @property
    def evaluation_retriever(self) -> Retriever:
        return self.ground.evaluation_retriever

    @property
    def training_folders(self) -> Mapping[str, str]:
        return self.ground.training_folders

    @property
    def evaluation_folders(self) -> Mapping[str, str]:
        return self.ground.evaluation_folders

    def fingerprints(self) -> dict[str, str]:
        """Of the training knowledge bases: a checkpoint belongs to them."""
        return {card.name: card.fingerprint for card in self.retriever.catalog}

    def all_fingerprints(self) -> dict[str, dict[str, str]]:
        """Of the knowledge bases of training and of those of evaluation."""
        evaluation = {card.name: card.fingerprint for card in self.evaluation_retriever.catalog}
        return {"training": self.fingerprints(), "evaluation": evaluation}

    def close(self) -> None:
        self.algorithm.stop()
        for actor in self.reward_actors:
            ray.kill(actor)
        if not self.lent:
            self.ground.close()


@dataclass
class Run:
    """One run: what it was told, what it runs on, where it writes, and how far it is."""

    config: TrainConfig
    dataset: Dataset
    folder: RunFolder
    parts: Parts
    progress: Progress
    tracker: Tracker
    tally: Tally
    supervisor: Supervisor
    iteration: int = 0
    """Iterations done."""

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """The seconds of the block are added up under this name, and a failure within it is known to have been in this phase."""
        with self.tally.timed(phase), self.supervisor.clock.doing(phase):
            yield


def build_parts(config: TrainConfig, dataset: Dataset, policy: str, progress: Progress, lent: Ground | None = None) -> Parts:
    """Ray has to be running. Knowledge bases that are not there yet are built; what can start side by side does.

    `lent`: the ground of earlier runs with the same data, which this one leaves as it was. Raises RunConfigError for what the cluster has no room
    for, before anything is built or started.
    """
    if lent:
        progress.phase("start rewards, rollout workers, learner")
        return Parts(*_learning(with_roles(config, lent.roles), dataset, policy, lent.retriever, lent.roles), lent, lent=True)
    config, roles = placed_or_refused(config, dataset, progress.console)
    folders = _folders(dataset, progress)
    progress.phase("start retrieval, rewards, rollout workers, learner")
    # On GPUs it comes last, as it does in the plan: Ray fills the fullest GPU first, and small shares of one would take the room of larger ones.
    evaluator = None if config.evaluation_gpus else Evaluator(policy, config, roles.rollout)
    retrievers = _retrievers(config, folders, progress)
    learning = _learning(config, dataset, policy, retrievers[0], roles)
    ground = Ground(evaluator or Evaluator(policy, config, roles.rollout), retrievers[0], retrievers[-1], folders[0], folders[1], roles)
    return Parts(*learning, ground)


def build_ground(config: TrainConfig, dataset: Dataset, policy: str, progress: Progress) -> Ground:
    """What `build_parts` is then lent, run after run. Raises RunConfigError where there is no room for a run on it."""
    config, roles = placed_or_refused(config, dataset, progress.console)
    folders = _folders(dataset, progress)
    progress.phase("start retrieval, evaluation workers")
    evaluator = Evaluator(policy, config, roles.rollout)
    retrievers = _retrievers(config, folders, progress)
    return Ground(evaluator, retrievers[0], retrievers[-1], folders[0], folders[1], roles)


def _folders(dataset: Dataset, progress: Progress) -> list[dict[str, str]]:
    """Knowledge base -> folder, for training and for evaluation."""
    progress.phase("knowledge bases")
    return [ensure_knowledge_bases(sources, progress.detail) for sources in (dataset.training_kbs, dataset.evaluation_kbs)]


def _retrievers(config: TrainConfig, folders: Sequence[dict[str, str]], progress: Progress) -> list[Retriever]:
    """One, or where they are different one for training and one for evaluation."""

    def announce(plan: MemoryPlan) -> None:
        progress.say(plan.line(), style="dim")

    retrievers = [start_retrieval(replace(config.retrieval, folders=folders[0]), announce=announce)]
    if folders[1] != folders[0]:
        retrievers.append(start_retrieval(replace(config.retrieval, folders=folders[1]), announce=announce, models_of=retrievers[0]))
    return retrievers


def _learning(
    config: TrainConfig, dataset: Dataset, policy: str, retriever: Retriever, roles: RoleResources
) -> tuple[StepGRPO, Sequence[Any]]:
    """The algorithm, and the reward actors that it asks."""
    actors = [start_reward_actor(retriever, config.reward, CPUS_PER_REWARD_ACTOR, roles.rewards) for _ in range(config.reward.actors)]
    algorithm = algorithm_config(config, dataset.train, policy, retriever, actors, roles.rollout).build_algo()
    return algorithm, actors


def algorithm_config(
    config: TrainConfig, items: Sequence[Any], policy: str, retriever: Retriever | None, reward_actors: Sequence[Any], resource: str = ""
) -> StepGRPOConfig:
    """The run's settings in the form that RLlib takes. `resource`: custom resource of the nodes that rollout workers run on; empty: any."""
    questions = config.train.questions_per_iteration
    return (
        StepGRPOConfig()
        .env_runners(
            num_env_runners=config.train.num_rollout_workers,
            num_cpus_per_env_runner=CPUS_PER_ROLLOUT_WORKER,
            num_gpus_per_env_runner=config.train.gpus_per_rollout_worker,
            custom_resources_per_env_runner=on_nodes_with(resource),
        )
        .training(
            policy_path=policy,
            rollout=config.rollout,
            learner=replace(config.learner, seed=config.train.seed),
            retriever=None if config.rollout.mode == "offline" else retriever,
            reward_actors=reward_actors,
            data=ShuffledQuestions(items, config.train.seed),
            questions_per_iteration=questions,
            questions_per_chunk=-(-questions // config.train.num_rollout_workers),
            overlap=config.train.overlap,
            trace=config.train.trace,
            sampling_seed=config.train.seed,
            deadline_s=config.learner.deadline_s,
        )
    )
