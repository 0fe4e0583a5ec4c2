"""The parts of a run, built in order: knowledge bases, retrieval, rewards, the algorithm, the evaluation workers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from experiments.config import TrainConfig
from experiments.datasets import Dataset, ensure_knowledge_bases
from experiments.evaluate import Evaluator
from experiments.failures.supervisor import Supervisor
from experiments.placement_table import placed_or_refused
from experiments.progress import Progress
from experiments.run_asks import CPUS_PER_REWARD_ACTOR, CPUS_PER_ROLLOUT_WORKER, on_nodes_with
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
class Parts:
    """What runs in Ray."""

    algorithm: StepGRPO
    evaluator: Evaluator
    retriever: Retriever
    """Over the training knowledge bases."""
    evaluation_retriever: Retriever
    """Over those of the validation and held-out questions; the same one where the data set does not tell them apart."""
    training_folders: Mapping[str, str]
    """Training knowledge base -> where it lies."""
    evaluation_folders: Mapping[str, str]

    def fingerprints(self) -> dict[str, str]:
        """Of the training knowledge bases: a checkpoint belongs to them."""
        return {card.name: card.fingerprint for card in self.retriever.catalog}

    def all_fingerprints(self) -> dict[str, dict[str, str]]:
        """Of the knowledge bases of training and of those of evaluation."""
        evaluation = {card.name: card.fingerprint for card in self.evaluation_retriever.catalog}
        return {"training": self.fingerprints(), "evaluation": evaluation}

    def close(self) -> None:
        self.evaluator.close()
        self.algorithm.stop()
        for retriever in {id(found): found for found in (self.evaluation_retriever, self.retriever)}.values():
            retriever.close()


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


def build_parts(config: TrainConfig, dataset: Dataset, policy: str, progress: Progress) -> Parts:
    """Ray has to be running. Knowledge bases that are not there yet are built; what can start side by side does.

    Raises RunConfigError for what the cluster has no room for, before anything is built or started.
    """
    config, roles = placed_or_refused(config, dataset, progress.console)
    progress.phase("knowledge bases")
    folders = [ensure_knowledge_bases(sources, progress.detail) for sources in (dataset.training_kbs, dataset.evaluation_kbs)]
    progress.phase("start retrieval, rewards, rollout workers, learner")
    # On GPUs it comes last, as it does in the plan: Ray fills the fullest GPU first, and small shares of one would take the room of larger ones.
    evaluator = None if config.evaluation_gpus else Evaluator(policy, config, roles.rollout)

    def announce(plan: MemoryPlan) -> None:
        progress.say(plan.line(), style="dim")

    retrievers = [start_retrieval(replace(config.retrieval, folders=folders[0]), announce=announce)]
    if folders[1] != folders[0]:
        retrievers.append(start_retrieval(replace(config.retrieval, folders=folders[1]), announce=announce, models_of=retrievers[0]))
    reward_actor = start_reward_actor(retrievers[0], config.reward, CPUS_PER_REWARD_ACTOR, roles.rewards)
    algorithm = algorithm_config(config, dataset.train, policy, retrievers[0], reward_actor, roles.rollout).build_algo()
    return Parts(algorithm, evaluator or Evaluator(policy, config, roles.rollout), retrievers[0], retrievers[-1], *folders)


def algorithm_config(
    config: TrainConfig, items: Sequence[Any], policy: str, retriever: Retriever | None, reward_actor: Any, resource: str = ""
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
            reward_actors=[reward_actor],
            data=ShuffledQuestions(items, config.train.seed),
            questions_per_iteration=questions,
            questions_per_chunk=-(-questions // config.train.num_rollout_workers),
            overlap=config.train.overlap,
            trace=config.train.trace,
            sampling_seed=config.train.seed,
            deadline_s=config.learner.deadline_s,
        )
    )
