"""`python -m experiments.evaluate POLICY_OR_RUN [CONFIG.yaml] [method=...] [dataset=...] [key=value ...]`: how good is it, and how sure are we?

POLICY_OR_RUN is a policy folder or the folder of a run, whose configuration and best policy are then used. `method=` is one of rollout/methods,
several with commas, or `every` (short for `evaluation.methods`); `dataset=` names a data set of experiments/datasets (short for `data.name`).
Every question is asked once by each method; what is measured is stored question by question, and a killed evaluation goes on where it was.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import ray
import torch
from ray.exceptions import RayError
from rich.console import Console

from experiments.cluster import start_ray
from experiments.comparison_tables import print_comparison
from experiments.config import RunConfigError, TrainConfig, find_policy, load_config
from experiments.datasets import ensure_knowledge_bases, load_dataset
from experiments.evaluation_folder import EvaluationFolder
from experiments.evaluation_progress import EvaluationProgress
from experiments.measures import Counts, Interval, by_family, count, kb_shares, summarise
from experiments.method_comparison import compared, measure
from experiments.methods import WITHOUT_GOLD, as_measured, has_gold, leaves_out_oracle, measured_methods
from experiments.placement_table import placed_or_refused
from experiments.progress import Progress
from experiments.question_file import DataError
from experiments.run_asks import CPUS_PER_ROLLOUT_WORKER, asks_of_evaluation, on_nodes_with
from experiments.run_folder import RunFolder
from learner.deadline import DeadlineError, results
from learner.lost_learner import refuse_lost_sender
from retrieval_actors.knowledge_base import KnowledgeBaseError
from retrieval_actors.retriever import Retriever
from retrieval_actors.start import start_retrieval
from rewards.actor import names_of
from rollout.config import RolloutConfig
from rollout.engines.choose import make_engine
from rollout.episode import RecordedTurn, roll_out_recorded
from rollout.episode_pool import roll_out
from rollout.policy import Policy
from rollout.records import Question, Trajectory
from rollout.weights import PublishedWeights, WeightBuffer, unpack

QUESTIONS_AT_ONCE = 64
"""Questions that a worker is handed at a time: enough for a full batch, few enough to share the work evenly."""
EVALUATION_SEED = 20250528
"""Of sampling (if any) and of the order in which passages are shown: the same for every policy and every run."""
Weights = str | PublishedWeights
"""A policy folder, or weights that workers take from the object store."""


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
            "failed_episodes": sum(bool(trajectory.error) for trajectory in self.trajectories),
            "search_errors": sum(trajectory.search_errors for trajectory in self.trajectories),
            "overall": {name: asdict(interval) for name, interval in self.overall().items()},
            "kb_shares": {kb: asdict(interval) for kb, interval in kb_shares(self.counts).items()},
            "by_family": {
                family: {"questions": len(counts), **{name: asdict(interval) for name, interval in summarise(counts).items()}}
                for family, counts in families.items()
            },
        }


class EvaluationWorker:
    """Holds a policy of its own: evaluation never touches the weights that are being trained, nor their knowledge bases."""

    def __init__(self, policy: str, config: RolloutConfig, device: str, dtype: str, deadline_s: float):
        torch.set_num_threads(config.threads)
        self._device, self._config, self._dtype, self._deadline_s = device, config, dtype, deadline_s
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
                self._engine = make_engine(Policy.load(weights, dtype=self._dtype, device=self._device), self._config)
                self._held = weights
        elif weights.checksum != self._held:
            refs, what = [bucket.ref for bucket in weights.buckets], f"the weights of policy version {weights.version}"
            fetched = WeightBuffer(tuple(results(refs, what, self._deadline_s)), weights.version)
            self._engine.update_weights(weights.version, unpack(fetched))
            self._held = weights.checksum


class Evaluator:
    """The evaluation workers of a run."""

    def __init__(self, policy: str, config: TrainConfig, resource: str = ""):
        """`resource`: custom resource of the nodes that they run on; empty: any."""
        self._config = config
        self._weights: Weights = policy
        self.seed = EVALUATION_SEED
        """Of sampling, and of the order in which passages are shown, in the next `run` or `parts`."""
        gpus, resources = config.evaluation_gpus, on_nodes_with(resource)
        actor: Any = ray.remote(EvaluationWorker)
        placed = actor.options(num_cpus=CPUS_PER_ROLLOUT_WORKER, num_gpus=gpus, resources=resources, max_restarts=-1, max_task_retries=2)
        arguments = policy, config.rollout, "cuda" if gpus else "cpu", config.learner.dtype, config.learner.deadline_s
        self._workers = [placed.remote(*arguments) for _ in range(config.train.num_rollout_workers)]

    @property
    def workers(self) -> list[Any]:
        """Handles of its actors."""
        return self._workers

    def use(self, policy: str) -> None:
        """What the next `run` measures: a policy folder."""
        self._weights = policy

    @contextmanager
    def holding(self, weights: PublishedWeights) -> Iterator[None]:
        """What a `run` in this block measures: weights of the architecture that the workers hold. Their bytes go from the learner to each node
        that evaluates, not through this process; after the block nobody keeps them in the object store for its sake."""
        before, self._weights = self._weights, weights
        try:
            yield
        finally:
            self._weights = before

    def run(
        self,
        items: Sequence[Question] | Sequence[RecordedTurn],
        retriever: Retriever,
        routing: str = "policy",
        progress: Progress | None = None,
        gold_passages: Mapping[str, Sequence[str]] | None = None,
    ) -> Evaluation:
        """Each item once, with the routing that is asked for; the same seed every time, so that only the policy differs.

        `gold_passages`: question id -> ids of the passages that hold its answer, where the data set names them."""
        config = replace(as_measured(self._config, self._config.evaluation.temperature), routing=routing)
        if config.mode != "offline":
            config = replace(config, mode="chain")
        found: dict[int, list[Trajectory]] = {}
        for start, _, trajectories in self.parts(items, retriever, config):
            found[start] = trajectories
            if progress:
                progress.detail("questions", sum(map(len, found.values())), len(items))
        trajectories = [trajectory for start in sorted(found) for trajectory in found[start]]
        retrievers = names_of(retriever)
        gold = gold_passages or {}
        return Evaluation(trajectories, [count(t, retrievers, gold.get(t.question.id, ())) for t in trajectories])

    def parts(
        self, items: Sequence[Any], retriever: Retriever, config: RolloutConfig, at_once: int = QUESTIONS_AT_ONCE
    ) -> Iterator[tuple[int, Sequence[Any], list[Trajectory]]]:
        """(place of the first item, the items, their trajectories) of each part, as soon as it is there.

        Raises `DeadlineError`, `LearnerLostError` when the weights are gone with the learner that had sent them, or what a worker raised.
        """
        waiting = deque((start, items[start : start + at_once]) for start in range(0, len(items), at_once))
        idle = deque(self._workers)
        running: dict[Any, tuple[int, Sequence[Any], Any]] = {}
        while waiting or running:
            while waiting and idle:
                start, part = waiting.popleft()
                worker = idle.popleft()
                running[worker.run.remote(self._weights, part, retriever, config, self.seed)] = (start, part, worker)
            deadline_s = self._config.learner.deadline_s
            done, _ = ray.wait(list(running), num_returns=1, timeout=deadline_s)
            if not done:
                raise DeadlineError(
                    f"waited {deadline_s:g} s for an evaluation worker to finish {at_once} questions; evaluation has as many workers as "
                    "train.num_rollout_workers, beside them: are there free CPUs, and GPUs for train.gpus_per_rollout_worker, for both?"
                )
            start, part, worker = running.pop(done[0])
            idle.append(worker)
            yield start, part, self._answer(done[0])

    def _answer(self, done: ray.ObjectRef) -> list[Trajectory]:
        try:
            (trajectories,) = results([done], "the trajectories of an evaluation worker that is done", self._config.learner.deadline_s)
        except RayError as error:
            if isinstance(self._weights, PublishedWeights):
                refuse_lost_sender(error, self._weights.version)
            raise
        return trajectories

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


def written_out(arguments: Sequence[str]) -> list[str]:
    """`method=a,b` and `dataset=c` as the settings that they are short for. A data set of another name begins without the paths and the knowledge
    bases of the old one."""
    full: list[str] = []
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key == "method":
            full.append(f"evaluation.methods=[{','.join(repr(name) for name in value.split(','))}]")
        elif key == "dataset":
            full[1:1] = [f"data.name={value}", "data.path=''", "data.image_folder=''", "data.heldout_path=''", "retrieval.folders={}"]
        else:
            full.append(argument)
    return full


def main(arguments: list[str]) -> int:
    console = Console(width=None if sys.stdout.isatty() else 160)
    try:
        config, policy = read_arguments(written_out(arguments))
        dataset = load_dataset(config.data, config.evaluation, config.retrieval.folders)
        gold = has_gold(dataset.heldout)
        methods = measured_methods(config, [source.name for source in dataset.evaluation_kbs], gold)
        for source in dataset.evaluation_kbs:
            source.check()
    except (RunConfigError, DataError, KnowledgeBaseError) as error:
        console.print(f"error: {error}", style="red", soft_wrap=True, markup=False, highlight=False)
        return 2
    with start_ray(config), EvaluationProgress(console) as progress:
        for note in (*dataset.notes, *([WITHOUT_GOLD] if leaves_out_oracle(config, gold) else [])):
            progress.say(note, style="yellow")
        try:
            placed, roles = placed_or_refused(config, dataset, console, asks_of_evaluation)
        except RunConfigError as error:
            console.print(f"error: {error}", style="red", soft_wrap=True, markup=False, highlight=False)
            return 2
        progress.phase("knowledge bases")
        folders = ensure_knowledge_bases(dataset.evaluation_kbs, progress.detail)
        wanted = replace(placed.retrieval, folders=folders)
        retriever = start_retrieval(wanted, progress.detail, announce=lambda plan: progress.say(plan.line(), style="dim"))
        folder = EvaluationFolder(config, policy, {card.name: card.fingerprint for card in retriever.catalog}, dataset.heldout)
        evaluator = Evaluator(policy, config, roles.rollout)
        found = {method.name: measure(evaluator, method, dataset, retriever, folder, progress) for method in methods}
    comparison = compared(found, methods, [item.question.id if isinstance(item, RecordedTurn) else item.id for item in dataset.heldout])
    folder.write_summary({"policy": policy, "dataset": config.data.name, **comparison})
    print_comparison(console, comparison, f"{policy}: {len(dataset.heldout)} held-out questions of {config.data.name}, 95 % intervals")
    console.print(f"question by question: {folder.path}", soft_wrap=True, highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
