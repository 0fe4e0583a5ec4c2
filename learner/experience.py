"""What one iteration learns from: questions, rolled out and scored."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from learner.question_ledger import Asked
from learner.rollout_batch import Batch
from rollout.episode_run import WorkReport
from rollout.records import ScoredTurn, Trajectory

LEFT_OUT = "its recorded prompt is longer than rollout.max_prompt_tokens"


class AccountError(RuntimeError):
    """A question or an episode was lost, or counted twice: a fault of the program."""


@dataclass
class Experience:
    taken: list[Asked] = field(default_factory=list)
    """Every question that was taken for it from the source, in the moment when it was taken."""
    asked: list[Asked] = field(default_factory=list)
    """Questions that were rolled out: finished or failed, not cut off."""
    trajectories: list[Trajectory] = field(default_factory=list)
    turns: list[ScoredTurn] = field(default_factory=list)
    reports: list[WorkReport] = field(default_factory=list)
    returned: Counter[str] = field(default_factory=Counter)
    """Ids of questions of which every episode came back whole, as the trajectories name them, not the ledger."""
    requeued: Counter[str] = field(default_factory=Counter)
    """Ids of stragglers that were cut off: they are asked again in the next iteration."""
    dropped: list[tuple[str, str]] = field(default_factory=list)
    """Ids of questions that failed, each with the reason: an episode that was broken off (its trajectory stays), or left out (it has none)."""

    def take(self, asked: Sequence[Asked]) -> Sequence[Asked]:
        self.taken += asked
        return asked

    def add(
        self, batch: Batch, asked: Sequence[Asked], scored: Mapping[str, int], turns: Sequence[ScoredTurn], attempt: int, episodes: int = 1
    ) -> list[Asked]:
        """A batch that is over. Returns the questions that were cut off.

        `scored`: trajectories that were handed to the reward actors, by the id of their question; `attempt`: 1, 2, ... where the questions replace
        some that taught nothing: episodes are numbered within one attempt; `episodes`: trajectories of a question. Raises `AccountError`.
        """
        late, trajectories = batch.unfinished(), batch.trajectories()
        came = Counter(trajectory.question.id for trajectory in trajectories)
        _refuse("episodes that came back and episodes that were scored", came, Counter(scored))
        _refuse("turns that were sampled", _judged(turns) & _sampled(trajectories), _judged(turns))
        reasons = {place: _why_dropped(batch.found[place]) for place in sorted(batch.found)}
        dropped = [(id_of(asked[place].question), reason) for place, reason in reasons.items() if reason]
        whole = came - _times(Counter(name for name, reason in dropped if reason != LEFT_OUT), episodes)
        _refuse(f"{episodes} episodes of a question", _times(Counter({name: n // episodes for name, n in whole.items()}), episodes), whole)
        self.returned += Counter({name: n // episodes for name, n in whole.items()})
        self.requeued += Counter(id_of(asked[place].question) for place in late)
        self.dropped += dropped
        self.asked += [entry for place, entry in enumerate(asked) if place not in set(late)]
        self.trajectories += trajectories
        self.turns += [replace(turn, episode=f"{turn.episode}/{attempt}") for turn in turns] if attempt else turns
        self.reports += batch.reports
        self.check()
        return [asked[place] for place in late]

    def check(self) -> None:
        """Every question that was taken has returned, is asked again or was dropped, once. Raises `AccountError` with the ids of the others."""
        taken = Counter(id_of(entry.question) for entry in self.taken)
        _refuse("questions that were asked", taken, self.returned + self.requeued + Counter(name for name, _ in self.dropped))

    def counts(self) -> dict[str, float]:
        """`asked_questions` = `returned_questions` + `requeued_questions` + `failed_questions`, each counted by itself."""
        judged, sampled = _judged(self.turns), _sampled(self.trajectories)
        return {
            "asked_questions": float(len(self.taken)),
            "returned_questions": float(self.returned.total()),
            "requeued_questions": float(self.requeued.total()),
            "failed_questions": float(len(self.dropped)),
            "left_out_questions": float(sum(reason == LEFT_OUT for _, reason in self.dropped)),
            **{f"unjudged_{kind}": float(sampled[kind] - judged[kind]) for kind in ("plan", "answer", "final")},
        }


def id_of(question: Any) -> str:
    """Of a question, or of the question that a recorded turn belongs to."""
    return getattr(question, "question", question).id


def _why_dropped(trajectories: Sequence[Trajectory]) -> str:
    """Empty: the question was not."""
    return next((t.error for t in trajectories if t.error), "") if trajectories else LEFT_OUT


def _sampled(trajectories: Sequence[Trajectory]) -> Counter[str]:
    """Turns by kind."""
    return Counter(group.state.kind for trajectory in trajectories for group in trajectory.groups for _ in group.turns)


def _judged(turns: Sequence[ScoredTurn]) -> Counter[str]:
    return Counter(turn.turn.kind for turn in turns)


def _times(counter: Counter[str], factor: int) -> Counter[str]:
    return Counter({name: n * factor for name, n in counter.items()})


def _refuse(what: str, expected: Counter[str], found: Counter[str]) -> None:
    """Raises `AccountError` unless both are the same."""
    wrong = [f"{name} ({found[name]} instead of {expected[name]})" for name in sorted(expected | found) if expected[name] != found[name]]
    if wrong:
        raise AccountError(
            f"the account of {what} does not balance: {', '.join(wrong[:8])}, {len(wrong)} in all; nothing is learned from this batch. "
            "A fault of the program: please report it, with these ids"
        )
