"""What one iteration learns from: questions, rolled out and scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from learner.question_ledger import Asked
from learner.rollout_batch import Batch
from rollout.episode_run import WorkReport
from rollout.records import ScoredTurn, Trajectory


@dataclass
class Experience:
    asked: list[Asked] = field(default_factory=list)
    """Questions that were rolled out: finished or failed, not cut off."""
    trajectories: list[Trajectory] = field(default_factory=list)
    turns: list[ScoredTurn] = field(default_factory=list)
    reports: list[WorkReport] = field(default_factory=list)
    requeued_questions: int = 0
    """Stragglers that were cut off: they are asked again in the next iteration."""
    failed_questions: int = 0
    """Questions with an episode that was broken off; its trajectory says why (`error`)."""

    def add(self, batch: Batch, asked: Sequence[Asked], turns: Sequence[ScoredTurn], attempt: int) -> list[Asked]:
        """A batch that is over. Returns the questions that were cut off.

        `attempt`: 1, 2, ... where the questions replace some that taught nothing; episodes are numbered within one attempt.
        """
        late = set(batch.unfinished())
        self.asked += [entry for place, entry in enumerate(asked) if place not in late]
        self.requeued_questions += len(late)
        self.failed_questions += sum(any(t.error for t in trajectories) for trajectories in batch.found.values())
        self.trajectories += batch.trajectories()
        self.turns += [replace(turn, episode=f"{turn.episode}/{attempt}") for turn in turns] if attempt else turns
        self.reports += batch.reports
        return [asked[place] for place in sorted(late)]

    def counts(self) -> dict[str, float]:
        """`asked_questions` = `returned_questions` + `requeued_questions` + `failed_questions`."""
        return {
            "asked_questions": float(len(self.asked) + self.requeued_questions),
            "returned_questions": float(len(self.asked) - self.failed_questions),
            "requeued_questions": float(self.requeued_questions),
            "failed_questions": float(self.failed_questions),
        }
