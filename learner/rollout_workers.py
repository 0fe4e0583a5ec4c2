"""Work for rollout workers that may die: every chunk of questions is rolled out exactly once, by whoever is alive.

Questions are cut into chunks, which the workers take one at a time; a dead one costs what it has not finished of its chunk. A lost worker is
sent the weights again as soon as Ray has restarted it, and works on. A run makes one chunk for each worker: the slots of an engine are filled from
one chunk, so several smaller ones would leave slots empty at the end of each, in every iteration, to be quicker in the rare one in which a worker
dies.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from learner.cycles import no_search_for_cycles
from learner.deadline import FETCH_S, DeadlineError
from learner.lost_learner import line
from learner.rollout_batch import Batch, Chunk
from learner.weight_broadcast import WeightBroadcast
from learner.weight_transfer import Lost, WeightTransfer
from rollout.episode_run import Worked
from rollout.records import Trajectory
from rollout.weights import MissingWeightsError, PublishedBucket
from rollout.worker import WrongPolicyVersion

ATTEMPTS = 4
"""A chunk that has cost so many workers their lives, and of which nothing came back between, will cost the next one its life, too."""
RETRY_S = 0.5
"""Between two tries to reach a worker that Ray is restarting."""
SLICE_S, LONG_SLICE_S = 0.5, 5.0
"""Workers tell what they have finished after so many seconds (the former where stragglers are cut off), not only at the end of a chunk: it is not
lost with them, and one that says nothing at all is noticed."""
logger = logging.getLogger(__name__)


class RolloutWorkers:
    """The workers of an RLlib `EnvRunnerGroup`, as something that turns questions into trajectories."""

    def __init__(self, env_runner_group: Any, chunk: int, deadline_s: float):
        # RLlib's own way to call workers and collect answers hides their errors, or waits for all of them; only its register of them is used.
        self._register = env_runner_group._worker_manager
        self.chunk, self.deadline_s = chunk, deadline_s
        self.version = -1
        """Policy version that was pushed last."""
        self.alive: set[int] = set()
        """Workers that hold this version."""
        self.sampling: dict[ray.ObjectRef, tuple[int, Chunk]] = {}
        """Calls that are under way: worker and chunk."""
        self.lost = 0
        """Times that a worker was lost since the start."""
        self.requeued_chunks = 0
        """Chunks that had to be rolled out again."""
        self.losses: list[Lost] = []
        """Each of them: which worker, where, while doing what."""
        self.transfer = WeightTransfer(lambda: self.handles)
        self.republish: Callable[[], Iterable[PublishedBucket]] | None = None
        """The buckets of the same version once more, through the object store, for when all workers that were broadcast to are lost."""
        self._joining: dict[ray.ObjectRef, int] = {}
        self._ask_again_at: dict[int, float] = {}

    @property
    def handles(self) -> dict[int, Any]:
        """Worker index -> actor handle, dead or alive."""
        return self._register.actors()

    def broadcast(self, version: int, broadcast: WeightBroadcast) -> list[PublishedBucket] | None:
        """Bring the weights to all workers at once, to be pushed then; None when that failed, or when a worker is lost: it comes back by `push`."""
        if not all(self._register.is_actor_healthy(worker) for worker in self.handles):
            return None
        self.transfer.version = version
        sent = broadcast.send(self.handles, lambda number, bucket: all(self.transfer.holds(w, number, bucket) for w in self.handles))
        self.transfer.nodes |= broadcast.nodes
        for worker, (bucket, reason) in broadcast.dead.items():
            self._leave(worker, RETRY_S, bucket, reason)
        if sent is not None:
            self.transfer.broadcast(self.handles, sent)
        return sent

    def push(self, version: int, buckets: Iterable[PublishedBucket], deadline_s: float | None = None) -> None:
        """Send weights to all workers, each bucket as soon as it is there, and wait until they have answered with their version and checksum.

        Workers that are known to be dead are not waited for: they are taken in while the others roll out. One that dies meanwhile, or is late, is
        named in `losses` and asked again later; the rest go on.
        Raises `DeadlineError` when none has taken the weights in time.
        """
        deadline_s = deadline_s or self.deadline_s
        end = time.monotonic() + deadline_s
        receivers = [worker for worker in self.handles if self._register.is_actor_healthy(worker)] or list(self.handles)
        self.version, self.alive, self._joining, self._ask_again_at = version, set(), {}, {}
        self.transfer.begin(version)
        for number, bucket in enumerate(buckets):
            self.transfer.buckets.append(bucket)
            for worker in receivers:
                self.transfer.send(worker, number)
        self._joining = {self.transfer.seal(worker): worker for worker in receivers}
        while self._joining or not self.alive:
            for answer in _first(self._joining, min(RETRY_S, max(0.0, end - time.monotonic()))):
                self._join(answer)
            if time.monotonic() >= end and (self._joining or not self.alive):
                self._give_up_the_late(deadline_s)
            if not self.alive:
                self._invite()

    def roll_out(self, questions: Sequence[Any], seed: int, overrides: dict[str, Any] | None = None) -> list[Trajectory]:
        """Trajectories of all questions, in their order, sampled with the version that was pushed last. Raises what `work` raises."""
        batch = Batch.of(questions, self.chunk, seed, overrides)
        for _ in self.work(batch):
            pass
        return batch.trajectories()

    def work(self, batch: Batch) -> Iterator[tuple[int, list[Trajectory]]]:
        """Roll the batch out, and give out each chunk, with its number, as soon as it is finished.

        Raises: what a worker raised; RuntimeError when one chunk keeps killing workers; `DeadlineError` when none is heard of in time.
        """
        with no_search_for_cycles():
            yield from self._work(batch)

    def _work(self, batch: Batch) -> Iterator[tuple[int, list[Trajectory]]]:
        self.sampling = {}
        self._ask_again_at = dict.fromkeys(set(self.handles) - self.alive - set(self._joining.values()), 0.0)
        progress, heard = time.monotonic(), 0
        while not batch.over:
            self._invite()
            self._give_out(batch)
            for answer in _first([*self.sampling, *self._joining], RETRY_S):
                if answer in self.sampling:
                    self._collect(answer, batch)
                else:
                    self._join(answer)
            yield from batch.hand_out()
            if len(batch.reports) > heard:
                progress, heard = time.monotonic(), len(batch.reports)
            if time.monotonic() - progress > self.deadline_s:
                raise DeadlineError(
                    f"waited {self.deadline_s:g} s to hear from a rollout worker: {len(batch.unfinished())} of "
                    f"{len(batch.questions)} questions are missing, workers {sorted(self.alive)} of {sorted(self.handles)} are alive"
                )
        yield from batch.hand_out(rest=True)

    def _give_out(self, batch: Batch) -> None:
        """One chunk to every worker that has none."""
        if not batch.waiting:
            return
        for worker in sorted(self.alive - {worker for worker, _ in self.sampling.values()})[: len(batch.waiting)]:
            chunk = batch.waiting.popleft()
            chunk.given = batch.left(chunk)
            questions = [batch.questions[place] for place in chunk.given]
            if chunk.losses >= ATTEMPTS:
                ids = ", ".join(getattr(question, "id", "?") for question in questions)
                raise RuntimeError(
                    f"{ATTEMPTS} rollout workers died of the same questions ({ids}); out of memory? lower rollout.batch_tokens"
                )
            call = self.handles[worker].begin.remote(questions, self.version, batch.overrides, batch.seed, _slice_s(batch))
            self.sampling[call] = worker, chunk

    def _collect(self, answer: ray.ObjectRef, batch: Batch) -> None:
        """Take in what is finished of a chunk, and let its worker go on; or, where the worker died or has forgotten the weights, put the chunk
        first in the queue."""
        worker, chunk = self.sampling.pop(answer)
        try:
            worked: Worked = ray.get(answer, timeout=self.deadline_s / 2)  # its node may be gone; the other half is for the others
        except RayError as error:
            if isinstance(error, RayTaskError) and not isinstance(error.cause, WrongPolicyVersion):
                raise
            self._leave(worker, 0.0, bucket=0, reason=line(error))
            chunk.losses += not isinstance(error, RayTaskError)  # a worker without the weights was restarted before it had the chunk
            self.requeued_chunks += 1
            batch.waiting.appendleft(chunk)
            return
        batch.reports.append(worked.report)
        batch.take_in(chunk, worked.finished)
        chunk.losses = 0 if worked.finished else chunk.losses
        if worked.unfinished and not batch.over:
            self.sampling[self.handles[worker].go_on.remote(self.version, _slice_s(batch))] = worker, chunk

    def _invite(self) -> None:
        """Send the weights to workers that are lost, when it is time to try; those that were broadcast are not at hand any more."""
        if any(bucket.ref is None for bucket in self.transfer.buckets):
            if self.alive or self._joining or self.republish is None:
                return
            self.transfer.buckets = list(self.republish())
        for worker in [worker for worker, at in self._ask_again_at.items() if at <= time.monotonic()]:
            del self._ask_again_at[worker]
            for number in range(len(self.transfer.buckets)):
                self.transfer.send(worker, number)
            self._joining[self.transfer.seal(worker)] = worker

    def _join(self, answer: ray.ObjectRef) -> None:
        """Take a worker in that now holds the weights; a dead one is asked again later. One that holds other weights is an error."""
        worker = self._joining.pop(answer)
        bucket, reason = self.transfer.stuck_at(worker)
        try:
            self.transfer.check(worker, ray.get(answer, timeout=FETCH_S))
        except RayError as error:
            if isinstance(error, RayTaskError) and not isinstance(error.cause, MissingWeightsError):
                raise
            self._leave(worker, RETRY_S, bucket, reason or line(error))
            return
        self.alive.add(worker)
        self._register.set_actor_state(worker, healthy=True)

    def _give_up_the_late(self, deadline_s: float) -> None:
        """Restart the workers that hold up the others. Raises `DeadlineError` when there are no others."""
        late = {worker: self.transfer.stuck_at(worker)[0] for worker in sorted(set(self._joining.values())) or sorted(self.handles)}
        if not self.alive:
            where = ", ".join(f"{worker} (node {self.transfer.node(worker) or 'unknown'}, bucket {late[worker]})" for worker in late)
            raise DeadlineError(
                f"waited {deadline_s:g} s for rollout workers {where} to take the {len(self.transfer.buckets)} buckets of policy version "
                f"{self.version}"
            )
        self._joining = {}
        for worker, bucket in late.items():
            ray.kill(self.handles[worker], no_restart=False)
            self._leave(worker, RETRY_S, bucket, f"no answer in {deadline_s:g} s, so it is restarted")

    def _leave(self, worker: int, ask_again_in: float, bucket: int, reason: str) -> None:
        """`bucket`: the one that it was being sent (from 1), 0 while sampling."""
        if self._register.is_actor_healthy(worker):
            self.lost += 1
            self.losses.append(self.transfer.lost(worker, bucket, reason))
            logger.warning(str(self.losses[-1]))
        self.alive.discard(worker)
        self.transfer.forget(worker)
        self._register.set_actor_state(worker, healthy=False)
        self._ask_again_at[worker] = time.monotonic() + ask_again_in


def _slice_s(batch: Batch) -> float:
    return LONG_SLICE_S if batch.patience.endless else SLICE_S


def _first(calls: Any, timeout_s: float) -> list[ray.ObjectRef]:
    """The calls that are answered, as soon as there is one; none after the timeout."""
    if not calls:
        time.sleep(timeout_s)
        return []
    return ray.wait(list(calls), timeout=timeout_s)[0]
