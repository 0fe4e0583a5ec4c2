"""`python -m experiments.evaluate POLICY_OR_RUN [CONFIG.yaml] [key=value ...]`: how good is a policy, and how sure are we?

POLICY_OR_RUN is a policy folder or the folder of a run, whose configuration and best policy are then used. Every question is asked once, and
the policy's own routing is compared with random routing, with the oracle's, and with retrieval from all knowledge bases.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import ray
import torch
from rich.console import Console

from experiments.cluster import start_ray
from experiments.config import RunConfigError, TrainConfig, find_policy, load_config
from experiments.datasets import Dataset, ensure_knowledge_bases, load_dataset
from experiments.measures import Counts, Interval, by_family, count, summarise
from experiments.progress import Progress
from experiments.question_file import DataError
from experiments.result_tables import methods_table, print_family_table
from experiments.run_folder import RunFolder
from retrieval_actors.knowledge_base import KnowledgeBaseError
from retrieval_actors.retriever import Retriever
from retrieval_actors.start import start_retrieval
from rewards.actor import RETRIEVERS
from rollout.config import RolloutConfig
from rollout.engines.choose import make_engine
from rollout.episode import RecordedTurn, roll_out_recorded
from rollout.episode_pool import roll_out
from rollout.policy import Policy
from rollout.records import Question, Trajectory
from rollout.weights import WeightBuffer, unpack

QUESTIONS_AT_ONCE = 64
"""Questions that a worker is handed at a time: enough for a full batch, few enough to share the work evenly."""
EVALUATION_SEED = 20250528
"""Of sampling (if any) and of the order in which passages are shown: the same for every policy and every run."""
Weights = str | WeightBuffer
"""A policy folder, or weights that are sent."""


@dataclass(frozen=True)
class Evaluation:
    """One policy, one way of routing, one set of questions."""

    trajectories: list[Trajectory]
    """In the order of the questions."""
    counts: list[Counts]
    """Of each question, for paired differences."""

    def overall(self) -> dict[str, Interval]:
        return summarise(self.counts)

    def summary(self) -> dict[str, Any]:
        """For summary.json: every measure with its interval, overall and by family."""
        families = by_family(self.trajectories, self.counts)
        return {
            "questions": len(self.trajectories),
            "overall": {name: asdict(interval) for name, interval in self.overall().items()},
            "by_family": {
                family: {"questions": len(counts), **{name: asdict(interval) for name, interval in summarise(counts).items()}}
                for family, counts in families.items()
            },
        }


class EvaluationWorker:
    """Holds a policy of its own: evaluation never touches the weights that are being trained, nor their knowledge bases."""

    def __init__(self, policy: str, config: RolloutConfig, device: str):
        torch.set_num_threads(config.threads)
        self._device, self._config = device, config
        self._held: str | int = ""
        self._hold(policy)

    def run(self, weights: Weights, items: Sequence[Any], retriever: Retriever, config: RolloutConfig, seed: int) -> list[Trajectory]:
        self._hold(weights)
        if items and isinstance(items[0], RecordedTurn):
            return roll_out_recorded(items, self._engine, config, seed)
        return roll_out(items, self._engine, retriever, config, seed)

    def _hold(self, weights: Weights) -> None:
        """Said with every call, because a worker that Ray has restarted holds the policy that it began with."""
        if isinstance(weights, str):
            if weights != self._held:
                self._engine = make_engine(Policy.load(weights, device=self._device), self._config)
                self._held = weights
        elif weights.checksum != self._held:
            self._engine.update_weights(weights.version, unpack(weights))
            self._held = weights.checksum


class Evaluator:
    """The evaluation workers of a run."""

    def __init__(self, policy: str, config: TrainConfig):
        self._config = config
        self._weights: Any = policy
        gpus = config.train.gpus_per_rollout_worker
        actor: Any = ray.remote(EvaluationWorker)
        placed = actor.options(num_cpus=0.5, num_gpus=gpus, max_restarts=-1, max_task_retries=2)
        self._workers = [placed.remote(policy, config.rollout, "cuda" if gpus else "cpu") for _ in range(config.train.num_rollout_workers)]

    def use(self, weights: Weights) -> None:
        """What the next `run` measures: a policy folder, or weights of the architecture that the workers hold."""
        self._weights = weights if isinstance(weights, str) else ray.put(weights)

    def run(
        self,
        items: Sequence[Question] | Sequence[RecordedTurn],
        retriever: Retriever,
        routing: str = "policy",
        progress: Progress | None = None,
    ) -> Evaluation:
        """Each item once, with the routing that is asked for; the same seed every time, so that only the policy differs."""
        config = replace(self._config.rollout, group_size=1, temperature=self._config.evaluation.temperature, routing=routing)
        if config.mode != "offline":
            config = replace(config, mode="chain")
        parts = [items[start : start + QUESTIONS_AT_ONCE] for start in range(0, len(items), QUESTIONS_AT_ONCE)]
        waiting, idle = deque(enumerate(parts)), deque(self._workers)
        running: dict[Any, tuple[int, Any]] = {}
        found: dict[int, list[Trajectory]] = {}
        while waiting or running:
            while waiting and idle:
                number, part = waiting.popleft()
                worker = idle.popleft()
                running[worker.run.remote(self._weights, part, retriever, config, EVALUATION_SEED)] = (number, worker)
            done, _ = ray.wait(list(running), num_returns=1)
            number, worker = running.pop(done[0])
            found[number] = ray.get(done[0])
            idle.append(worker)
            if progress:
                progress.detail("questions", sum(map(len, found.values())), len(items))
        trajectories = [trajectory for number in range(len(parts)) for trajectory in found[number]]
        retrievers = {card.retriever_name: card.name for card in retriever.catalog} or RETRIEVERS
        return Evaluation(trajectories, [count(trajectory, retrievers) for trajectory in trajectories])

    def close(self) -> None:
        for worker in self._workers:
            ray.kill(worker)


def read_arguments(arguments: list[str]) -> tuple[TrainConfig, str]:
    """(configuration, policy folder) of POLICY_OR_RUN [CONFIG.yaml] [key=value ...]. Raises RunConfigError."""
    if not arguments or "=" in arguments[0]:
        raise RunConfigError("which policy? python -m experiments.evaluate POLICY_OR_RUN [CONFIG.yaml] [key=value ...]")
    subject, rest = arguments[0], arguments[1:]
    if not (Path(subject) / "config.yaml").is_file():
        config = load_config(rest)
        return config, find_policy(subject)
    folder = RunFolder.open(subject)
    named = any("=" not in argument for argument in rest)
    config = load_config(rest if named else [str(folder.path / "config.yaml"), *rest])
    return config, find_policy(str(folder.policy))


def main(arguments: list[str]) -> int:
    console = Console()
    try:
        config, policy = read_arguments(arguments)
        dataset: Dataset = load_dataset(config.data, config.evaluation, config.retrieval.folders)
        for source in dataset.evaluation_kbs:
            source.check()
    except (RunConfigError, DataError, KnowledgeBaseError) as error:
        console.print(f"[red]{error}", soft_wrap=True)
        return 2
    with start_ray(config), Progress(console, f"evaluate {policy}", 1, 0) as progress:
        progress.phase("knowledge bases")
        folders = ensure_knowledge_bases(dataset.evaluation_kbs, progress.detail)
        wanted = replace(config.retrieval, folders=folders)
        retriever = start_retrieval(wanted, progress.detail, announce=lambda plan: progress.say(plan.line(), style="dim"))
        evaluator = Evaluator(policy, config)
        found = {}
        routings = ["policy", *(config.evaluation.baselines if config.rollout.mode != "offline" else [])]
        for routing in dict.fromkeys(routings):
            progress.phase(f"evaluate, routing: {routing}")
            found[routing] = evaluator.run(dataset.heldout, retriever, routing, progress)
    print_family_table(console, found["policy"].summary(), title=f"{policy}: {len(dataset.heldout)} held-out questions, 95 % intervals")
    console.print(methods_table({routing: evaluation.summary()["overall"] for routing, evaluation in found.items()}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
