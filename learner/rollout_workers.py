"""Rollout workers that may die: a worker takes a chunk of questions at a time; if it dies, only the unfinished questions are rolled out again."""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from learner.deadline import FETCH_S, DeadlineError, one_line
from learner.rollout_batch import Chunk, RolledOut, RolloutBatch, fetch_trajectories
from learner.weight_transfer import LostWorker, WeightBroadcast, WeightTransfer
from rollout.records import Trajectory
from rollout.roll_out import WorkReport
from rollout.rollout_worker import WrongPolicyVersion
from rollout.weight_buckets import MissingWeightsError, PublishedBucket

ATTEMPTS = 4  # worker deaths without progress after which a chunk is given up
RETRY_S = 0.5  # between two tries to reach a worker that Ray is restarting
logger = logging.getLogger(__name__)


@contextmanager
def garbage_collector_paused() -> Iterator[None]:
    """Pauses the garbage collector: an iteration has many small objects and no cycles, and scanning them is slow."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class RolloutWorkers:
    """The workers of an RLlib `EnvRunnerGroup`: they turn questions into trajectories."""

    def __init__(self, env_runner_group: Any, chunk: int, deadline_s: float, partial: bool = False):
        # Only RLlib's register of workers is used: its own calls hide the errors of workers, or wait for all of them.
        self._register = env_runner_group._worker_manager
        self.chunk, self.deadline_s, self.partial = chunk, deadline_s, partial
        self.version, self.requeued_chunks = -1, 0
        self.alive: set[int] = set()  # workers that hold `version`
        self.sampling: dict[ray.ObjectRef, tuple[int, Chunk, ray.ObjectRef]] = {}  # call -> worker, chunk, reference to the trajectories
        self.held: list[tuple[ray.ObjectRef, int, ray.ObjectRef, list[Any]]] = []
        """`rollout.partial`: of the last batch, call, worker, reference and questions (None: finished) that a worker was at when it was over."""
        self.losses: list[LostWorker] = []
        self.transfer = WeightTransfer(lambda: self.handles)
        self.republish: Callable[[], Iterable[PublishedBucket]] | None = None  # for when all workers that got the broadcast are lost
        self._joining: dict[ray.ObjectRef, int] = {}
        self._ask_again_at: dict[int, float] = {}

    @property
    def handles(self) -> dict[int, Any]:
        return self._register.actors()

    def broadcast(self, version: int, broadcast: WeightBroadcast) -> list[PublishedBucket] | None:
        """Broadcast the weights to all workers; pass the returned buckets to `push`. None if it failed, or if a worker is lost."""
        if not all(self._register.is_actor_healthy(worker) for worker in self.handles):
            return None
        self.transfer.version = version
        sent = broadcast.send(self.transfer)
        for worker, (bucket, reason) in broadcast.dead.items():
            self._mark_lost(worker, RETRY_S, bucket, reason)
        return sent

    def push(self, version: int, buckets: Iterable[PublishedBucket], deadline_s: float | None = None) -> None:
        """Send each bucket to all workers as soon as it comes, and wait for their version and checksum. A worker that dies or is late is added to
        `losses`, and tried again while the others roll out. Raises `DeadlineError` if no worker has taken the weights in time."""
        deadline_s = deadline_s or self.deadline_s
        end = time.monotonic() + deadline_s
        receivers = [worker for worker in self.handles if self._register.is_actor_healthy(worker)] or list(self.handles)
        if self.version < 0:  # after a measurement or a restored checkpoint nothing goes on
            self.held = []
        self.version, self.alive, self._joining, self._ask_again_at = version, set(), {}, {}
        self.transfer.begin(version)
        for number, bucket in enumerate(buckets):
            self.transfer.buckets.append(bucket)
            for worker in receivers:
                self.transfer.send(worker, number)
        self._joining = {self.transfer.seal(worker): worker for worker in receivers}
        while self._joining or not self.alive:
            for answer in _answered(self._joining, min(RETRY_S, max(0.0, end - time.monotonic()))):
                self._check_weights(answer)
            if time.monotonic() >= end and (self._joining or not self.alive):
                self._restart_late(deadline_s)
            if not self.alive:
                self._send_to_lost()

    @garbage_collector_paused()
    def roll_out(self, questions: Sequence[Any], seed: int, overrides: dict[str, Any] | None = None) -> list[Trajectory]:
        """Trajectories of all questions, in order, with the version pushed last. Raises what `work` raises."""
        batch = RolloutBatch(questions, self.chunk, seed, overrides)
        for _ in self.work(batch):
            pass
        return fetch_trajectories(batch.rolled_out(), self.deadline_s)

    def work(self, batch: RolloutBatch) -> Iterator[tuple[int, list[RolledOut]]]:
        """Roll out the batch; yield (number, trajectories) of each chunk as soon as it is finished. Raises what a worker raised; RuntimeError if
        one chunk kills worker after worker; `DeadlineError` if no worker answers in time."""
        self.sampling, held, self.held = {}, [each for each in self.held if each[1] in self.alive], []
        for (call, worker, ref, _), chunk in zip(held, batch.carry_on([questions for *_, questions in held]), strict=True):
            if chunk.places:
                self.sampling[call] = worker, chunk, ref
        self._ask_again_at = dict.fromkeys(set(self.handles) - self.alive - set(self._joining.values()), 0.0)
        progress, reports = time.monotonic(), 0
        while not batch.over:
            self._send_to_lost()
            self._assign_chunks(batch)
            for answer in _answered([*self.sampling, *self._joining], RETRY_S):
                if answer in self.sampling:
                    self._collect(answer, batch)
                else:
                    self._check_weights(answer)
            yield from batch.hand_out()
            if len(batch.reports) > reports:
                progress, reports = time.monotonic(), len(batch.reports)
            if time.monotonic() - progress > self.deadline_s:
                missing = f"{len(batch.unfinished())} of {len(batch.questions)} questions are missing"
                alive = f"workers {sorted(self.alive)} of {sorted(self.handles)} are alive"
                raise DeadlineError(f"waited {self.deadline_s:g} s to hear from a rollout worker: {missing}, {alive}")
        if self.partial:
            asked = {place: batch.questions[place] for place in batch.unfinished()}
            calls = self.sampling.items()
            self.held = [(call, worker, ref, [asked.get(place) for place in chunk.given]) for call, (worker, chunk, ref) in calls]
        yield from batch.hand_out(rest=True)

    def _assign_chunks(self, batch: RolloutBatch) -> None:
        for worker in sorted(self.alive - {worker for worker, _, _ in self.sampling.values()})[: len(batch.waiting)]:
            chunk = batch.waiting.popleft()
            chunk.given = batch.left(chunk)
            questions = [batch.questions[place] for place in chunk.given]
            if chunk.losses >= ATTEMPTS:
                ids = ", ".join(getattr(question, "id", "?") for question in questions)
                raise RuntimeError(
                    f"{ATTEMPTS} rollout workers died of the same questions ({ids}); out of memory? lower rollout.batch_tokens"
                )
            repeats = [batch.repeats[place] for place in chunk.given]
            call, ref = self.handles[worker].sample.remote(questions, self.version, batch.overrides, batch.seed, batch.slice_s, repeats)
            self.sampling[call] = worker, chunk, ref

    def _collect(self, answer: ray.ObjectRef, batch: RolloutBatch) -> None:
        """Store what is finished of a chunk, and let its worker continue; if the worker died or lost its weights, requeue the chunk."""
        worker, chunk, ref = self.sampling.pop(answer)
        try:
            report: WorkReport = ray.get(answer, timeout=self.deadline_s / 2)  # its node may be gone; half is left for the others
        except RayError as error:
            if isinstance(error, RayTaskError) and not isinstance(error.cause, WrongPolicyVersion):
                raise
            self._mark_lost(worker, 0.0, bucket=0, reason=one_line(error))
            chunk.losses += not isinstance(error, RayTaskError)  # a worker without the weights was restarted before it had the chunk
            self.requeued_chunks += 1
            batch.waiting.appendleft(chunk)
            return
        batch.reports.append(report)
        batch.take_in(chunk, report.finished, ref)
        chunk.losses = 0 if report.finished else chunk.losses
        if report.unfinished and batch.left(chunk) and (self.partial or not batch.over):
            call, ref = self.handles[worker].go_on.remote(self.version, batch.slice_s)
            self.sampling[call] = worker, chunk, ref

    def _send_to_lost(self) -> None:
        """Send the weights to lost workers whose time has come; weights that were broadcast are published first, if no other worker is left."""
        if any(bucket.ref is None for bucket in self.transfer.buckets):
            if self.alive or self._joining or self.republish is None:
                return
            self.transfer.buckets = list(self.republish())
        for worker in [worker for worker, at in self._ask_again_at.items() if at <= time.monotonic()]:
            del self._ask_again_at[worker]
            for number in range(len(self.transfer.buckets)):
                self.transfer.send(worker, number)
            self._joining[self.transfer.seal(worker)] = worker

    def _check_weights(self, answer: ray.ObjectRef) -> None:
        worker = self._joining.pop(answer)
        bucket, reason = self.transfer.stuck_at(worker)
        try:
            self.transfer.check(worker, ray.get(answer, timeout=FETCH_S))
        except RayError as error:
            if isinstance(error, RayTaskError) and not isinstance(error.cause, MissingWeightsError):
                raise
            self._mark_lost(worker, RETRY_S, bucket, reason or one_line(error))
            return
        self.alive.add(worker)
        self._register.set_actor_state(worker, healthy=True)

    def _restart_late(self, deadline_s: float) -> None:
        """Restart the late workers. Raises `DeadlineError` if there are no others."""
        late = {worker: self.transfer.stuck_at(worker)[0] for worker in sorted(set(self._joining.values())) or sorted(self.handles)}
        if not self.alive:
            where = ", ".join(f"{worker} (node {self.transfer.nodes.get(worker) or 'unknown'}, bucket {late[worker]})" for worker in late)
            what = f"to take the {len(self.transfer.buckets)} buckets of policy version {self.version}"
            raise DeadlineError(f"waited {deadline_s:g} s for rollout workers {where} {what}")
        self._joining = {}
        for worker, bucket in late.items():
            ray.kill(self.handles[worker], no_restart=False)
            self._mark_lost(worker, RETRY_S, bucket, f"no answer in {deadline_s:g} s, so it is restarted")

    def _mark_lost(self, worker: int, ask_again_in: float, bucket: int, reason: str) -> None:
        """`bucket`: the one (from 1) that was being sent to the worker; 0: it was sampling."""
        if self._register.is_actor_healthy(worker):
            node, of, version = self.transfer.nodes.get(worker, ""), len(self.transfer.buckets), self.transfer.version
            self.losses.append(LostWorker(worker, node, bucket, of, version, reason))
            logger.warning(str(self.losses[-1]))
        self.alive.discard(worker)
        self.transfer.forget(worker)
        self._register.set_actor_state(worker, healthy=False)
        self._ask_again_at[worker] = time.monotonic() + ask_again_in


def _answered(calls: Any, timeout_s: float) -> list[ray.ObjectRef]:
    """Waits for an answer; returns the answered calls, none after the timeout."""
    if not calls:
        time.sleep(timeout_s)
        return []
    return ray.wait(list(calls), timeout=timeout_s)[0]
