"""What a rollout worker did when: its own seconds and those that its engine tells."""

from __future__ import annotations

import time

from rollout.episode import PolicyEngine
from rollout.episode_run import WorkReport
from rollout.timeline import Timeline

COUNTS = ("sampled_tokens", "slot_steps_used", "slot_steps_available")


class EngineTimeline(Timeline):
    """`generate` is told apart into `prefill` and `decode` by the engine's own clock (prefill first, where a span holds both)."""

    def __init__(self, engine: PolicyEngine, drawn: bool = False):
        super().__init__(drawn=drawn)
        self._engine, self._prefill_s = engine, 0.0
        self._counted = dict.fromkeys(COUNTS, 0)
        self._reported = time.time()

    def did(self, name: str, start: float, seconds: float) -> None:
        if name != "generate":
            super().did(name, start, seconds)
            return
        total = self._engine.stats.prefill_s
        prefill, self._prefill_s = min(seconds, total - self._prefill_s), total
        if prefill > 0:
            super().did("prefill", start, prefill)
        super().did("decode", start + prefill, seconds - prefill)

    def resume(self) -> None:
        """Work begins again: what has passed since the last report was idle."""
        now = time.time()
        self.did("idle", self._reported, max(0.0, now - self._reported))

    def report(self, worker: int, policy_version: int, memory_mb: float) -> WorkReport:
        """Everything since the last report."""
        seconds, spans = self.take()
        self._reported = time.time()
        stats = self._engine.stats
        now = {name: getattr(stats, name) for name in COUNTS}
        counts = {name: now[name] - self._counted[name] for name in COUNTS}
        self._counted = now
        return WorkReport(worker, policy_version, memory_mb, seconds, spans=tuple(spans), **counts)
