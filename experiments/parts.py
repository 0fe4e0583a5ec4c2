"""The parts of a run, built in order: knowledge bases, retrieval, rewards, the algorithm, the evaluation workers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from experiments.config import TrainConfig
from experiments.datasets import Dataset, ensure_knowledge_bases
from experiments.evaluate import Evaluator
from experiments.failures.supervisor import Supervisor
from experiments.progress import Progress
from experiments.run_folder import RunFolder
from experiments.tally import Tally
from experiments.tracking import Tracker
from learner.question_source import ShuffledQuestions
from learner.step_grpo import StepGRPO
from learner.step_grpo_config import StepGRPOConfig
from retrieval_actors.memory_plan import MemoryPlan
from retrieval_actors.retriever import Retriever
from retrieval_actors.start import start_retrieval
from rewards.actor import start_reward_actor

CPUS_PER_ROLLOUT_WORKER = 0.5


@dataclass(frozen=True)
class Parts:
    """What runs in Ray."""

    algorithm: StepGRPO
    evaluator: Evaluator
    retriever: Retriever
    """Over the training knowledge bases."""
    evaluation_retriever: Retriever
    """Over those of the validation and held-out questions; the same one where the data set does not tell them apart."""

    def fingerprints(self) -> dict[str, str]:
        """Of the training knowledge bases: a checkpoint belongs to them."""
        return {card.name: card.fingerprint for card in self.retriever.catalog}

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
    """Ray has to be running. Knowledge bases that are not there yet are built; what can start side by side does."""
    progress.phase("knowledge bases")
    folders = [ensure_knowledge_bases(sources, progress.detail) for sources in (dataset.training_kbs, dataset.evaluation_kbs)]
    progress.phase("start retrieval, rewards, rollout workers, learner")
    evaluator = Evaluator(policy, config)

    def announce(plan: MemoryPlan) -> None:
        progress.say(plan.line(), style="dim")

    retrievers = [start_retrieval(replace(config.retrieval, folders=folders[0]), announce=announce)]
    if folders[1] != folders[0]:
        retrievers.append(start_retrieval(replace(config.retrieval, folders=folders[1]), announce=announce, models_of=retrievers[0]))
    reward_actor = start_reward_actor(retrievers[0], config.reward)
    algorithm = algorithm_config(config, dataset.train, policy, retrievers[0], reward_actor).build_algo()
    return Parts(algorithm, evaluator, retrievers[0], retrievers[-1])


def algorithm_config(config: TrainConfig, items: Sequence[Any], policy: str, retriever: Retriever, reward_actor: Any) -> StepGRPOConfig:
    """The run's settings in the form that RLlib takes."""
    questions = config.train.questions_per_iteration
    return (
        StepGRPOConfig()
        .env_runners(
            num_env_runners=config.train.num_rollout_workers,
            num_cpus_per_env_runner=CPUS_PER_ROLLOUT_WORKER,
            num_gpus_per_env_runner=config.train.gpus_per_rollout_worker,
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
