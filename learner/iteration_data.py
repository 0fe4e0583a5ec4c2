"""What one iteration learns from: its questions, rolled out and scored; checks that none is lost; and its metrics."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np

from learner.collapse import kb_entropies
from learner.config import LearnerConfig
from learner.deadline import results
from learner.objective.advantages import too_old
from learner.objective.losses import MAXIMA
from learner.question_ledger import AskedQuestion
from learner.reward_calls import ScoredTurns
from learner.rollout_batch import RolledOut, RolloutBatch, fetch_trajectories
from rewards.scored_summary import KINDS, ScoredSummary
from rollout.nan_check import largest
from rollout.records import ScoredTurn, Trajectory
from rollout.roll_out import WorkReport
from rollout.trajectory_summary import VALUE_COUNTS, TrajectorySummary

NOT_ADDED = (*MAXIMA, "grad_norm", "largest_weight", "seconds", "ended")
PER_ROUTED_TURN = ("best_route_probability", "route_entropy")
PER_TOKEN = ("ratio", "clip_fraction", "entropy", "kl", "correction", "corrected_tokens")
LEFT_OUT = "its recorded prompt is longer than rollout.max_prompt_tokens"


class AccountError(RuntimeError):
    """A question or an episode was lost, or counted twice: a bug."""


@dataclass
class IterationData:
    """Summaries, and references to trajectories and scored turns, which Ray frees with this object."""

    taken: int = 0  # questions that were asked
    asked: list[AskedQuestion] = field(default_factory=list)  # questions that finished or failed; not those that were cut off
    rolled_out: list[RolledOut] = field(default_factory=list)
    turns: ScoredTurns = field(default_factory=lambda: ScoredTurns(ScoredSummary.of([]), ()))
    reports: list[WorkReport] = field(default_factory=list)
    returned: int = 0  # questions of which every episode finished
    requeued: int = 0  # stragglers that were cut off: they are asked again in the next iteration
    dropped: list[tuple[str, str]] = field(default_factory=list)  # (question id, why it failed or was left out)

    def add(
        self, batch: RolloutBatch, asked: Sequence[AskedQuestion], scored: Counter[str], turns: ScoredTurns, attempt: int, episodes: int = 1
    ) -> list[AskedQuestion]:
        """Adds a finished batch; returns the questions that were cut off. `scored`: trajectories handed to the reward actors, by question id;
        `attempt`: 1, 2, ... where questions replace some without variance; `episodes`: trajectories of a question. Raises `AccountError`."""
        found = {place: batch.found[place].summaries for place in sorted(batch.found)}
        summaries, judged = [summary for part in found.values() for summary in part], _judged(turns.summary)
        _balance("episodes that came back and episodes that were scored", Counter(summary.question_id for summary in summaries), scored)
        _balance("turns that were sampled", judged & _sampled(summaries), judged)
        reasons = {place: next((s.error for s in part if s.error), "") if part else LEFT_OUT for place, part in found.items()}
        whole = [place for place, reason in reasons.items() if not reason]
        expected = Counter(id_of(asked[place].question) for place in whole for _ in range(episodes))
        returned = Counter(summary.question_id for place in whole for summary in found[place])
        _balance(f"{episodes} episodes of a question", expected, returned)
        late = batch.unfinished()
        self.taken += len(asked)
        self.returned += len(whole)
        self.requeued += len(late)
        self.dropped += [(id_of(asked[place].question), reason) for place, reason in reasons.items() if reason]
        self.asked += [asked[place] for place in found]
        self.rolled_out += batch.rolled_out()
        numbered = replace(turns, summary=turns.summary.with_suffix(f"/{attempt}" if attempt else ""))
        self.turns = ScoredTurns.joined([self.turns, numbered]) if len(self.turns) else numbered
        self.reports += batch.reports
        return [asked[place] for place in late]

    @property
    def summaries(self) -> list[TrajectorySummary]:
        return [summary for part in self.rolled_out for summary in part.summaries]

    def fetch_trajectories(self, deadline_s: float) -> list[Trajectory]:
        return fetch_trajectories(self.rolled_out, deadline_s)

    def first(self, questions: int) -> Callable[[float], tuple[list[Trajectory], list[ScoredTurn]]]:
        """A function that fetches one episode of each of the first questions, with their scored turns among others; holds only its references."""
        few = [replace(part, summaries=part.summaries[:1]) for part in self.rolled_out if part.summaries][:questions]
        asked, of = {part.summaries[0].question_id for part in few}, iter(self.turns.summary.question_of)
        chunks = [ref for ref, length in self.turns.chunks if asked & set(islice(of, length))]

        def fetch(deadline_s: float) -> tuple[list[Trajectory], list[ScoredTurn]]:
            turns = results(chunks, "the scored turns of some episodes", deadline_s)
            return fetch_trajectories(few, deadline_s), [turn for chunk in turns for turn in chunk]

        return fetch

    def counts(self) -> dict[str, float]:
        """`asked_questions` = `returned_questions` + `requeued_questions` + `failed_questions`."""
        judged, sampled = _judged(self.turns.summary), _sampled(self.summaries)
        return {
            "asked_questions": float(self.taken),
            "returned_questions": float(self.returned),
            "requeued_questions": float(self.requeued),
            "failed_questions": float(len(self.dropped)),
            "left_out_questions": float(sum(reason == LEFT_OUT for _, reason in self.dropped)),
            **{f"unjudged_{kind}": float(sampled[kind] - judged[kind]) for kind in KINDS},
        }


def id_of(question: Any) -> str:
    """Id of a question, or of the question of a recorded turn."""
    return getattr(question, "question", question).id


def _sampled(summaries: Sequence[TrajectorySummary]) -> Counter[str]:
    return Counter({kind: sum(summary.sampled.get(kind, 0) for summary in summaries) for kind in KINDS})


def _judged(scored: ScoredSummary) -> Counter[str]:
    return Counter({kind: int((scored.kind == number).sum()) for number, kind in enumerate(KINDS)})


def _balance(what: str, expected: Counter[str], found: Counter[str]) -> None:
    wrong = [f"{name} ({found[name]} instead of {expected[name]})" for name in sorted(expected | found) if expected[name] != found[name]]
    if wrong:
        message = f"the account of {what} does not balance: {', '.join(wrong[:8])}, {len(wrong)} in all; nothing is learned from this batch"
        raise AccountError(f"{message}. A fault of the program: please report it, with these ids")


def rollout_metrics(summaries: Sequence[TrajectorySummary]) -> dict[str, float]:
    """Counts, and means over trajectories or turns. `failed_episodes` have no outcome: they or one of their searches failed. `masked_turns` were
    sampled after a failed search. `use_text`, ..., `use_stop`: shares of what the well-formed plan turns of the trunks chose. `values_...` and
    `value_...`, only where routes were valued: fields of `PlanValues`, summed; the spread is the mean over plan turns."""

    def total(name: str) -> float:
        return float(sum(summary.counts.get(name, 0) for summary in summaries))

    turns = float(sum(sum(summary.sampled.values()) for summary in summaries))
    chosen = Counter(choice for summary in summaries for choice in summary.choices)
    names = dict.fromkeys(("text", "text_image", "table", *sorted(chosen), "stop")) if chosen else {}
    return {
        "trajectories": float(len(summaries)),
        "turns": turns,
        **{name: total(name) for name in ("sampled_tokens", "search_errors", "masked_turns", "unknown_routes")},
        "failed_episodes": float(sum(not summary.whole for summary in summaries)),
        "retrievals_per_question": _share(total("retrievals"), len(summaries)),
        "malformed_plans": _share(total("malformed_plans"), total("steps")),
        "cut_off_turns": _share(total("cut_off_turns"), turns),
        **({name: total(name) for name in (*VALUE_COUNTS, "value_tokens")} if total("valued_plans") else {}),
        **({"value_spread": total("value_spread") / total("valued_plans")} if total("valued_plans") else {}),
        **{f"use_{name}": chosen[name] / chosen.total() for name in names},
    }


def staleness(scored: ScoredSummary, config: LearnerConfig, version: int) -> dict[str, float]:
    """How many updates before `version`, which learns from it, a token was sampled: mean and maximum; the share of `older_tokens`, which older
    weights sampled than the newest of the batch; the number of `too_old_turns`."""
    tokens = scored.versions or {version: 1}
    total, newest = max(1, sum(tokens.values())), max(tokens)
    return {
        "staleness": sum((version - v) * n for v, n in tokens.items()) / total,
        "staleness_max": float(version - min(tokens)),
        "older_tokens": sum(n for v, n in tokens.items() if v < newest) / total,
        "too_old_turns": float(too_old(scored, config, version).sum()),
    }


def reward_metrics(scored: ScoredSummary) -> dict[str, float]:
    """Mean `reward` of a turn, also by kind (`reward_plan`, ...); of each component (`routing`, `format`, ...) over the turns that have it; mean
    `outcome` of the episodes that have one; the number of `judged_turns`; and `kb_entropies`."""
    by_kind = {f"reward_{kind}": scored.rewards[scored.kind == number] for number, kind in enumerate(KINDS)}
    means = {"reward": scored.rewards, **by_kind, "outcome": np.array(list(scored.episode_outcomes().values()))}
    components = {name: total / count for name, (total, count) in scored.components.items()}
    found = {name: float(values.mean()) for name, values in means.items() if len(values)} | {"judged_turns": float(len(scored))}
    return components | found | kb_entropies(scored.routes)


def worker_metrics(reports: Sequence[WorkReport]) -> dict[str, float]:
    """Sums over all workers, and policy version and memory of each; `tokens_per_second`: of one worker, idle time not counted."""
    seconds = dict.fromkeys(("prefill", "decode", "encode", "search", "idle"), 0.0)
    for report in reports:
        seconds |= {name: seconds.get(name, 0.0) + value for name, value in report.seconds.items()}
    busy = sum(seconds.values()) - seconds["idle"]
    used, available = (sum(getattr(report, f"slot_steps_{name}") for report in reports) for name in ("used", "available"))
    found = {f"{name}_s": value for name, value in seconds.items()}
    if busy:
        found["search_share"] = seconds["search"] / busy
        found["tokens_per_second"] = sum(report.sampled_tokens for report in reports) / busy
    if available:
        found["slots_in_use"] = used / available
    for report in reports:
        found |= {f"{report.worker}/policy_version": float(report.policy_version), f"{report.worker}/memory_mb": report.memory_mb}
    return found


def combined_steps(by_rank: list[list[dict[str, float]]]) -> list[dict[str, float]]:
    """The metrics of each step over all ranks: sums are added; of metrics in `NOT_ADDED` the largest is taken."""
    steps: list[dict[str, float]] = []
    for ranks in zip(*by_rank, strict=True):
        steps.append(defaultdict(float))
        for name, value in (metric for metrics in ranks for metric in metrics.items()):
            before = steps[-1][name]
            steps[-1][name] = largest((before, value)) if name in NOT_ADDED else before + value
    return steps


def update_metrics(steps: list[dict[str, float]]) -> dict[str, float]:
    if not steps:
        return {"steps": 0.0, "learned_tokens": 0.0}

    def total(name: str) -> float:
        return sum(step.get(name, 0.0) for step in steps)

    first, tokens = steps[0], total("tokens")
    return {name: total(name) / tokens for name in PER_TOKEN if name in first} | {
        **{name: first[name] / first["tokens"] for name in ("mismatch", "mismatch_k3", "mismatch_tv")},
        "mismatch_max": first["mismatch_max"],
        "ratio_max": largest(step["ratio_max"] for step in steps),
        **{name: total(name) / len(steps) for name in ("loss", "grad_norm")},
        "steps": float(len(steps)),
        "learned_tokens": tokens,
        "tokens_per_second": total("row_tokens") / total("seconds"),
        **({name: total(name) / total("routes") for name in PER_ROUTED_TURN} if total("routes") else {}),
    }


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
