"""Measures policies: Ray actors answer questions, the rollout workers of a run between its iterations, or actors of their own."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import RayError

from experiments.cluster.placement import CPUS_PER_ROLLOUT_WORKER, on_nodes_with
from experiments.config import TrainConfig
from experiments.evaluation.confidence import confidence_summary, judged
from experiments.evaluation.evaluation_folder import failures_of
from experiments.evaluation.metrics import Counts, count
from experiments.evaluation.significance import evaluation_summary
from learner.deadline import DeadlineError, refuse_lost_sender, results
from retrieval_actors.sharded_search import Retriever
from rewards.actor import names_of
from rollout.confidence import read_calibration
from rollout.config import RolloutConfig, ValueConfig
from rollout.measurement import EvaluationWorker, Weights
from rollout.need_matcher import need_matcher
from rollout.needs import prepare
from rollout.records import Question, RecordedTurn, Trajectory
from rollout.weight_buckets import PublishedWeights

if TYPE_CHECKING:
    from learner.rollout_workers import RolloutWorkers

QUESTIONS_AT_ONCE = 64  # Questions that a worker gets at a time: enough for a full batch, few enough to share the work evenly
EVALUATION_SEED = 20250528  # Seed of sampling (if any) and of the order of the passages: the same for every policy and every run


@dataclass(frozen=True)
class Evaluation:
    """One policy, one method, one set of questions."""

    trajectories: list[Trajectory]  # In the order of the questions, as `counts`
    counts: list[Counts]
    min_confidence: float = 0.0

    def summary(self) -> dict[str, Any]:
        """For summary.json: failures, every metric with its interval, overall and by family, and `confidence` where there is any."""
        answers = judged([trajectory.confidence for trajectory in self.trajectories], self.counts)
        confidence = {"confidence": confidence_summary(answers, self.min_confidence)} if len(answers) else {}
        metrics = evaluation_summary(self.counts, [trajectory.question.family for trajectory in self.trajectories])
        return failures_of(self.trajectories) | metrics | confidence


class Evaluator:
    """Measures with the rollout workers of a run, or, without any, with as many evaluation workers as `train.num_rollout_workers`."""

    def __init__(self, policy: str, config: TrainConfig, rollout_workers: RolloutWorkers | None = None):
        self._config, self._borrowed = config, rollout_workers
        self.weights: Weights = policy  # The policy that is measured
        self.calibration = read_calibration(policy)  # None: its answers have no confidence
        self.seed = EVALUATION_SEED
        self.own_workers: list[Any] = []
        if rollout_workers is None:
            gpus, resources = config.train.gpus_per_rollout_worker, on_nodes_with(config.rollout.resource)
            actor: Any = ray.remote(EvaluationWorker)
            placed = actor.options(num_cpus=CPUS_PER_ROLLOUT_WORKER, num_gpus=gpus, resources=resources, max_restarts=-1)
            arguments = policy, config.rollout, gpus > 0, config.learner.dtype, config.learner.deadline_s
            self.own_workers = [placed.remote(*arguments) for _ in range(config.train.num_rollout_workers)]

    @property
    def workers(self) -> list[Any]:
        return self.own_workers if self._borrowed is None else list(self._borrowed.handles.values())

    @contextmanager
    def holding(self, weights: Weights) -> Iterator[None]:
        """Measure these weights in the block, a folder with its calibration; after it, no reference keeps them in the object store."""
        before, self.weights = (self.weights, self.calibration), weights
        self.calibration = read_calibration(weights) if isinstance(weights, str) else None
        try:
            yield
        finally:
            self.weights, self.calibration = before

    def run(
        self,
        items: Sequence[Question] | Sequence[RecordedTurn],
        retriever: Retriever,
        routing: str = "policy",
        progress: Callable[[str, int, int], None] | None = None,
        gold_passages: Mapping[str, Sequence[str]] | None = None,
    ) -> Evaluation:
        """Each item once, always with the same seed. `gold_passages`: question id -> ids of the passages that hold its answer, if known."""
        config = replace(rollout_as_measured(self._config), routing=routing)
        found: dict[int, list[Trajectory]] = {}
        for start, _, trajectories in self.parts(items, retriever, config):
            found[start] = trajectories
            if progress:
                progress("questions", sum(map(len, found.values())), len(items))
        trajectories = [trajectory for start in sorted(found) for trajectory in found[start]]
        retrievers, gold, matcher = names_of(retriever), gold_passages or {}, need_matcher(config.need_calibration)
        prepare(trajectories, matcher)
        least = self._config.evaluation.min_confidence
        return Evaluation(trajectories, [count(t, retrievers, gold.get(t.question.id, ()), matcher, least) for t in trajectories], least)

    def parts(
        self, items: Sequence[Any], retriever: Retriever, config: RolloutConfig, at_once: int = QUESTIONS_AT_ONCE
    ) -> Iterator[tuple[int, Sequence[Any], list[Trajectory]]]:
        """(index of the first item, the items, their trajectories) of each part, as soon as it is done. Raises `DeadlineError`,
        `LearnerLostError` when the weights are gone with the learner that sent them, or what a worker raised."""
        if self._borrowed is not None:
            self._borrowed.version = -1  # they hold other weights now: they have to be sent again before the next rollout
        waiting = deque((start, items[start : start + at_once]) for start in range(0, len(items), at_once))
        idle = deque(self.workers)
        running: dict[Any, tuple[int, Sequence[Any], Any]] = {}
        while waiting or running:
            while waiting and idle:
                (start, part), worker = waiting.popleft(), idle.popleft()
                running[worker.measure.remote(self.weights, part, retriever, config, self.seed)] = (start, part, worker)
            deadline_s = self._config.learner.deadline_s
            done, _ = ray.wait(list(running), num_returns=1, timeout=deadline_s)
            if not done:
                raise DeadlineError(
                    f"waited {deadline_s:g} s for a worker to measure {at_once} questions; there are train.num_rollout_workers of them: "
                    "are there free CPUs, and GPUs for train.gpus_per_rollout_worker?"
                )
            start, part, worker = running.pop(done[0])
            idle.append(worker)
            trajectories = self._trajectories(done[0])
            if self.calibration and config.routing == "policy":  # other methods leave other signals
                trajectories = [replace(t, confidence=self.calibration.confidence(t)) for t in trajectories]
            yield start, part, trajectories

    def _trajectories(self, done: ray.ObjectRef) -> list[Trajectory]:
        try:
            (trajectories,) = results([done], "the trajectories of a worker that is done", self._config.learner.deadline_s)
        except RayError as error:
            if isinstance(self.weights, PublishedWeights):
                refuse_lost_sender(error, self.weights.version)
            raise
        return trajectories

    def close(self) -> None:
        for worker in self.own_workers:
            ray.kill(worker)


def rollout_as_measured(config: TrainConfig) -> RolloutConfig:
    """The rollout settings of a measurement: one answer a question, no time limit, nothing that only a reward needs."""
    measured = replace(config.rollout, group_size=1, temperature=config.evaluation.temperature, episode_s=0.0)
    measured = replace(measured, gold_gains=False, record_routes=False, values=ValueConfig(), plan_siblings=0, unjudged_without_gold=[])
    measured = replace(measured, support=measured.engine != "vllm")  # its weights are in another process
    return measured if measured.mode == "offline" else replace(measured, mode="chain")
