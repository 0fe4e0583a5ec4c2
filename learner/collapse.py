"""Signs of collapse: metrics of the last iterations that show that training goes wrong, and what to try; and the entropy of the knowledge bases
that plan turns name, by kind of question, which shows when all kinds go to the same one. Pure functions."""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import pydantic.dataclasses
import yaml
from pydantic import Field, PositiveInt

from rewards.scored_summary import Route

Share = Annotated[float, Field(ge=0, le=1)]


@pydantic.dataclasses.dataclass
class CollapseConfig:
    """Section `learner.collapse`: thresholds on the mean of the last `window` iterations; 0 switches a threshold off."""

    window: PositiveInt = 5
    """Iterations over which metrics are averaged; before there are that many, no sign is reported."""
    min_entropy: float = 0.005
    """Nats a token. Below it the siblings of a state are copies of one another."""
    max_grad_norm_ratio: float = 20.0
    """Gradient norm divided by its median since the start."""
    min_format_rate: Share = 0.5
    """Share of turns that are well-formed."""
    min_stop_rate: Share = 0.02
    """Share of the well-formed plan turns that stop."""
    max_stop_rate: Share = 0.98
    """The same share; above this, the policy hardly searches any more."""
    min_kb_entropy_ratio: Share = 0.4
    """Entropy of the knowledge bases that plan turns name, divided by that of the right ones; without gold steps, by that of the first `window`
    iterations. Below it nearly all questions go to one knowledge base."""
    min_retrievals: float = 0.05
    """Retrievals a question."""
    max_zero_variance: Share = 0.95
    """Share of groups without variance."""
    max_mismatch: float = 0.1
    """Mean difference of log-probabilities between sampler and learner, nats."""
    stop: bool = False
    """End the training at the first sign, with a checkpoint; the best policy so far is kept."""


DIVERSE = 0.3  # nats (two knowledge bases, one in 9 % of the turns): where routes need not be that diverse, their entropy is not judged
WATCHED: list[dict[str, str]] = yaml.safe_load(Path(__file__).with_name("collapse_signs.yaml").read_text(encoding="utf-8"))


class Sign(NamedTuple):
    name: str
    found: float
    threshold: float
    cause: str
    advice: str

    def __str__(self) -> str:
        return f"{self.name} is {self.found:.4g} (threshold {self.threshold:g}): {self.cause}; try {self.advice}"


def signs(rows: Sequence[Mapping[str, Any]], config: CollapseConfig) -> list[Sign]:
    """The signs in the last `window` rows; rows are metrics of iterations, oldest first, named as in metrics.jsonl."""
    found = []
    recent = derived(rows, config.window)[-config.window :] if len(rows) >= config.window else []
    for watched in WATCHED:
        threshold = getattr(config, watched["threshold"])
        values = [row[watched["metric"]] for row in recent if row.get(watched["metric"]) is not None]
        if not threshold or not values:
            continue
        mean = sum(values) / len(values)
        if not (mean >= threshold if watched["threshold"].startswith("min") else mean <= threshold):  # NaN is a sign, too
            found.append(Sign(watched["name"], mean, threshold, watched["cause"], watched["advice"]))
    return found


def derived(rows: Sequence[Mapping[str, Any]], window: int) -> list[dict[str, Any]]:
    """The rows with `grad_norm_ratio` (to the median), `zero_variance` (share of groups), `live_retrievals` (not in `offline` mode), and
    `kb_entropy_ratio` (to that of the right routes) or, without gold steps, `kb_entropy_since_start` (to the mean of the first `window`)."""
    norms = sorted(row["grad_norm"] for row in rows if row.get("grad_norm") is not None and math.isfinite(row["grad_norm"]))
    median = norms[len(norms) // 2] if norms else 0.0
    first = [row["kb_entropy"] for row in rows if "kb_entropy" in row and "right_kb_entropy" not in row][:window]
    start = sum(first) / max(1, len(first))
    found = list(map(dict, rows))
    for row in found:
        if median > 0 and row.get("grad_norm") is not None:
            row["grad_norm_ratio"] = row["grad_norm"] / median
        if "varied_groups" in row:
            row["zero_variance"] = 1 - row["varied_groups"]
        if "use_stop" in row:
            row["live_retrievals"] = row.get("retrievals_per_question")
        name, whole = ("ratio", row["right_kb_entropy"]) if "right_kb_entropy" in row else ("since_start", start)
        if "kb_entropy" in row and whole >= DIVERSE:
            row[f"kb_entropy_{name}"] = row["kb_entropy"] / whole
    return found


class Watch:
    """Reports a sign when it appears, and again only after it has disappeared. `rows`: metrics of earlier iterations, for a resumed run."""

    def __init__(self, config: CollapseConfig, rows: Sequence[Mapping[str, Any]] = ()):
        self.config, self._rows = config, list(rows)
        self._standing = {sign.cause for sign in signs(self._rows, config)}

    @property
    def standing(self) -> int:
        return len(self._standing)

    def add(self, row: Mapping[str, Any]) -> list[Sign]:
        """Adds the metrics of an iteration; returns the new signs."""
        self._rows.append(row)
        before, found = self._standing, signs(self._rows, self.config)
        self._standing = {sign.cause for sign in found}
        return [sign for sign in found if sign.cause not in before]


def kb_entropies(routes: Mapping[Route, int]) -> dict[str, float]:
    """Nats. The kind of a question is what the plan turn needed: the knowledge bases that were right to name. Where that is never known, without
    gold steps, it is the family; where it is known for some turns only, the others do not count.
    `kb_entropy`: of all turns together. `kb_entropy_KIND`: of one kind. `kb_information`: mutual information of kind and route.
    `right_kb_entropy`: if every turn that named a wrong one had named the (first) right one. Empty if no turn asked."""
    known = {route: number for route, number in routes.items() if route.needed}
    by_kind: defaultdict[str, Counter[str]] = defaultdict(Counter)
    named: Counter[str] = Counter()
    right: Counter[str] = Counter()
    for (needed, family, kb), number in (known or routes).items():
        by_kind["_or_".join(needed) or family][kb] += number
        named[kb] += number
        right[kb if kb in needed or not needed else needed[0]] += number
    if not named:
        return {}
    within = sum(entropy(counts) * counts.total() for counts in by_kind.values()) / named.total()
    return {
        "kb_entropy": entropy(named),
        "kb_information": max(0.0, entropy(named) - within),
        **({"right_kb_entropy": entropy(right)} if known else {}),
        **{f"kb_entropy_{kind}": entropy(by_kind[kind]) for kind in sorted(by_kind) if kind},
    }


def entropy(counts: Counter[str]) -> float:
    """Nats, of the shares of the counts."""
    total = counts.total()
    return sum(number / total * math.log(total / number) for number in counts.values() if number)
