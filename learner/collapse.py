"""Signs that training goes wrong, read off the figures of the last iterations. Pure: rows of figures in, signs out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass
class CollapseConfig:
    """Section `learner.collapse`: thresholds on the mean of the last `window` iterations; 0 switches a threshold off."""

    window: int = 5
    """Iterations over which figures are averaged; nothing is said before there are so many."""
    min_entropy: float = 0.005
    """Nats a token. Below it the siblings of a state are copies of one another."""
    max_grad_norm_ratio: float = 20.0
    """Gradient norm, over its median since the start."""
    min_format_rate: float = 0.5
    """Well-formed turns, of all."""
    min_stop_rate: float = 0.02
    """Plan turns that stop, of those that are well-formed."""
    max_stop_rate: float = 0.98
    """The same from above: nothing is asked any more."""
    min_retrievals: float = 0.05
    """Retrievals a question."""
    max_zero_variance: float = 0.95
    """Groups without variance, of all."""
    max_mismatch: float = 0.1
    """Mean difference of log-probabilities between sampler and learner, nats."""
    stop: bool = False
    """End the training at the first sign, with a checkpoint; the best policy so far is kept."""

    def __post_init__(self) -> None:
        """Raises ValueError, naming the key, what was found, and what is allowed."""
        if self.window < 1:
            raise ValueError(f"learner.collapse.window is {self.window}; it must be at least 1")
        for key in ("min_format_rate", "min_stop_rate", "max_stop_rate", "max_zero_variance"):
            if not 0 <= getattr(self, key) <= 1:
                raise ValueError(f"learner.collapse.{key} is {getattr(self, key)}; it is a share, between 0 (off) and 1")


@dataclass(frozen=True)
class Sign:
    """One figure beyond its threshold."""

    name: str
    """`entropy`, `grad_norm`, `format`, ...: the figure."""
    found: float
    threshold: float
    cause: str
    """What it usually comes from."""
    advice: str
    """The option to try."""

    def __str__(self) -> str:
        return f"{self.name} is {self.found:.4g} (threshold {self.threshold:g}): {self.cause}; try {self.advice}"


@dataclass(frozen=True)
class Watched:
    """One figure of an iteration and what it should not do."""

    name: str
    threshold: str
    """Field of `CollapseConfig`."""
    read: Callable[[Mapping[str, Any]], float | None]
    """The figure in a row of metrics; None where it was not measured."""
    below: bool
    """Whether the sign is a figure below the threshold; else above."""
    cause: str
    advice: str


def _named(name: str) -> Callable[[Mapping[str, Any]], float | None]:
    return lambda row: row.get(name)


WATCHED = (
    Watched(
        "entropy", "min_entropy", _named("entropy"), True,
        "the policy has become deterministic and no longer explores",
        "learner.clip_high=0.28, learner.entropy_weight=0.001 or a lower learner.lr",
    ),
    Watched(
        "grad_norm", "max_grad_norm_ratio", _named("grad_norm_ratio"), False,
        "updates are too large, or a few tokens have extreme ratios",
        "a lower learner.lr, learner.dual_clip=3 or learner.ratio=turn",
    ),
    Watched(
        "format", "min_format_rate", _named("format"), True,
        "turns are no longer well-formed: the reward pays for something else, or turns are cut off",
        "reward.format_weight=0.1, learner.kl_weight=0.01, or a larger rollout.max_new_tokens if cut_off_turns is high",
    ),
    Watched(
        "stop", "min_stop_rate", _named("use_stop"), True,
        "the policy never stops: stopping is paid for too rarely",
        "more questions that need no retrieval, or a lower rollout.max_steps",
    ),
    Watched(
        "stop", "max_stop_rate", _named("use_stop"), False,
        "the policy stops at once: asking is paid for too rarely",
        "reward.routing_weight, a start that asks (train.policy), or learner.kl_weight=0.01",
    ),
    Watched(
        "retrievals", "min_retrievals", lambda row: row.get("retrievals") if "use_stop" in row else None, True,
        "the policy has stopped retrieving, or searches fail",
        "a look at search_errors, then learner.kl_weight=0.01 or a start that asks (train.policy)",
    ),
    Watched(
        "zero_variance", "max_zero_variance", lambda row: 1 - row["varied_groups"] if "varied_groups" in row else None, False,
        "nearly all siblings earn the same: questions are too easy or too hard, or all siblings are alike",
        "a larger rollout.group_size, learner.resample_limit=2 or rollout.temperature=1",
    ),
    Watched(
        "mismatch", "max_mismatch", _named("mismatch"), False,
        "sampler and learner compute other probabilities for the same weights",
        "learner.dtype=float32, or learner.sampler_cap=2",
    ),
)  # fmt: skip
"""Figures as they stand in metrics.jsonl; recorded turns (`rollout.mode=offline`) have no `use_stop`, and retrieve nothing."""


def signs(rows: Sequence[Mapping[str, Any]], config: CollapseConfig) -> list[Sign]:
    """The signs in the last `window` rows; rows are figures of iterations, oldest first, named as in metrics.jsonl."""
    if len(rows) < config.window:
        return []
    recent = with_norm_ratio(rows)[-config.window :]
    found = []
    for watched in WATCHED:
        threshold = getattr(config, watched.threshold)
        values = [value for row in recent if (value := watched.read(row)) is not None]
        if not threshold or not values:
            continue
        mean = sum(values) / len(values)
        if (mean < threshold) if watched.below else (mean > threshold):
            found.append(Sign(watched.name, mean, threshold, watched.cause, watched.advice))
    return found


def with_norm_ratio(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows with `grad_norm_ratio`: the gradient norm over its median in all of them, so that no scale has to be known."""
    norms = sorted(row["grad_norm"] for row in rows if row.get("grad_norm") is not None)
    median = norms[len(norms) // 2] if norms else 0.0
    if not median > 0:
        return [dict(row) for row in rows]
    return [dict(row) | ({"grad_norm_ratio": row["grad_norm"] / median} if row.get("grad_norm") is not None else {}) for row in rows]


class Watch:
    """Signs as they come up: each is told once, and again only after it had gone."""

    def __init__(self, config: CollapseConfig, rows: Sequence[Mapping[str, Any]] = ()):
        """`rows`: of the iterations before, when a run is resumed."""
        self.config = config
        self._rows = [dict(row) for row in rows]
        self._standing = {_which(sign) for sign in signs(self._rows, config)}

    @property
    def standing(self) -> int:
        """How many signs there are now."""
        return len(self._standing)

    def add(self, row: Mapping[str, Any]) -> list[Sign]:
        """The figures of one more iteration; returns the signs that are new."""
        self._rows.append(dict(row))
        found = {_which(sign): sign for sign in signs(self._rows, self.config)}
        new = [sign for key, sign in found.items() if key not in self._standing]
        self._standing = set(found)
        return new


def _which(sign: Sign) -> str:
    """Which sign it is, whatever was found: `stop` has two."""
    return f"{sign.name} {sign.cause}"
