"""Work for rollout workers that may die: every chunk of questions is rolled out exactly once, by whoever is alive.

Questions are cut into many small chunks, so that all workers stay busy and a dead one costs one chunk. A lost worker is sent the weights again
as soon as Ray has restarted it, and works on.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from learner.deadline import DeadlineError
from rollout.records import Trajectory
from rollout.weights import WeightBuffer
from rollout.worker import WrongPolicyVersion

ATTEMPTS = 4
"""A chunk that has cost so many workers their lives will cost the next one its life, too."""
RETRY_S = 0.5
"""Between two tries to reach a worker that Ray is restarting."""


class RolloutWorkers:
    """The workers of an RLlib `EnvRunnerGroup`, as something that turns questions into trajectories."""

    def __init__(self, env_runner_group: Any, chunk: int, deadline_s: float):
        # RLlib's own way to call workers and collect answers swallows their errors, or waits for all of them; its register of them is used.
        self._register = env_runner_group._worker_manager
        self.chunk, self.deadline_s = chunk, deadline_s
        self.version = -1
        """Policy version that was pushed last."""
        self.lost = 0
        """Times that a worker was lost since the start."""
        self.requeued_chunks = 0
        """Chunks that had to be rolled out again."""
        self._weights: ray.ObjectRef | None = None
        self._checksum = 0
        self._ready: set[int] = set()

    @property
    def handles(self) -> dict[int, Any]:
        """Worker index -> actor handle, dead or alive."""
        return self._register.actors()

    def push(self, weights: ray.ObjectRef, deadline_s: float | None = None) -> None:
        """Send weights to all workers, and wait until every living one has answered with their version and checksum.

        Raises `DeadlineError` when one does not answer, or none is alive.
        """
        buffer: WeightBuffer = ray.get(weights)
        self._weights, self.version, self._checksum = weights, buffer.version, buffer.checksum
        self._ready = set()
        end = time.monotonic() + (deadline_s or self.deadline_s)
        pending = {handle.set_weights.remote(weights): worker for worker, handle in self.handles.items()}
        while pending or not self._ready:
            done, _ = ray.wait(list(pending), timeout=max(0.0, end - time.monotonic())) if pending else ([], [])
            if time.monotonic() >= end:
                raise DeadlineError(
                    f"waited {deadline_s or self.deadline_s:g} s for rollout workers {sorted(pending.values()) or list(self.handles)} "
                    f"to take the weights of policy version {self.version}"
                )
            for ref in done:
                self._joined(ref, pending.pop(ref))
            if not pending and not self._ready:
                time.sleep(RETRY_S)
                pending = {handle.set_weights.remote(weights): worker for worker, handle in self.handles.items()}

    def roll_out(self, questions: Sequence[Any], seed: int, overrides: dict[str, Any] | None = None) -> list[Trajectory]:
        """Trajectories of all questions, in their order, sampled with the version that was pushed last.

        How the questions are cut depends on the chunk size alone, so the outcome is the same whichever worker does what.
        Raises: what a worker raised; RuntimeError when one chunk keeps killing workers; `DeadlineError` when no worker finishes anything in time.
        """
        chunks = [questions[i : i + self.chunk] for i in range(0, len(questions), self.chunk)]
        waiting, attempts = deque(range(len(chunks))), [0] * len(chunks)
        finished: dict[int, list[Trajectory]] = {}
        sampling: dict[ray.ObjectRef, tuple[int, int]] = {}  # -> worker, chunk
        joining: dict[ray.ObjectRef, int] = {}  # -> worker
        ask_again_at: dict[int, float] = dict.fromkeys(set(self.handles) - self._ready, 0.0)
        progress = time.monotonic()
        while len(finished) < len(chunks):
            idle = sorted(self._ready - {worker for worker, _ in sampling.values()})
            for worker in idle[: len(waiting)]:
                chunk = waiting.popleft()
                attempts[chunk] += 1
                if attempts[chunk] > ATTEMPTS:
                    ids = ", ".join(getattr(question, "id", "?") for question in chunks[chunk])
                    raise RuntimeError(
                        f"{ATTEMPTS} rollout workers died of the same questions ({ids}): out of memory? lower rollout.batch_tokens"
                    )
                ref = self.handles[worker].sample.remote(chunks[chunk], self.version, overrides, seed)
                sampling[ref] = worker, chunk
            now = time.monotonic()
            for worker in [worker for worker, at in ask_again_at.items() if at <= now]:
                del ask_again_at[worker]
                joining[self.handles[worker].set_weights.remote(self._weights)] = worker
            if now - progress > self.deadline_s:
                raise DeadlineError(
                    f"waited {self.deadline_s:g} s for a rollout worker to finish anything: {len(chunks) - len(finished)} of {len(chunks)} "
                    f"chunks are missing, workers {sorted(self._ready)} of {sorted(self.handles)} are alive"
                )
            pending = [*sampling, *joining]
            done = ray.wait(pending, timeout=RETRY_S)[0] if pending else time.sleep(RETRY_S) or []
            for ref in done:
                if ref in joining:
                    worker = joining.pop(ref)
                    if not self._joined(ref, worker):
                        ask_again_at[worker] = time.monotonic() + RETRY_S
                    continue
                worker, chunk = sampling.pop(ref)
                try:
                    finished[chunk] = ray.get(ref)
                    progress = time.monotonic()
                except RayTaskError as error:
                    if not isinstance(error.cause, WrongPolicyVersion):
                        raise
                    self._leave(worker)
                except RayError:
                    self._leave(worker)
                if chunk not in finished:
                    self.requeued_chunks += 1
                    waiting.appendleft(chunk)
                    ask_again_at[worker] = time.monotonic()
        return [trajectory for chunk in sorted(finished) for trajectory in finished[chunk]]

    def _joined(self, answer: ray.ObjectRef, worker: int) -> bool:
        """Whether a worker now holds the weights; one that says it holds others, or fails for another reason than being dead, is an error."""
        try:
            held = ray.get(answer)
        except RayTaskError:
            raise
        except RayError:
            self._leave(worker)
            return False
        if tuple(held) != (self.version, self._checksum):
            raise RuntimeError(f"rollout worker {worker} answered with weights {held}, it was sent {(self.version, self._checksum)}")
        self._ready.add(worker)
        self._register.set_actor_state(worker, healthy=True)
        return True

    def _leave(self, worker: int) -> None:
        self.lost += worker in self._ready
        self._ready.discard(worker)
        self._register.set_actor_state(worker, healthy=False)
