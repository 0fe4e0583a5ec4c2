"""Which knowledge base plan turns named, by what was right to name. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rollout.needs import askable_needs
from rollout.records import Exchange, GoldStep

STOP, MALFORMED = "stop", "malformed"


def routing_confusion(
    rows: Iterable[Mapping[str, Any]], gold_steps: Mapping[str, Sequence[GoldStep]], max_steps: int
) -> dict[str, dict[str, int]]:
    """Gold -> chosen -> plan turns, of the lines that an evaluation of the router wrote.

    Gold is the set of knowledge bases of the needs that could be asked for (`table or text`), or `stop` when nothing was left to ask. An episode
    that made fewer than `max_steps` searches ended with a plan turn that stopped or was malformed; which of them, its counts say.
    """
    found: dict[str, Counter[str]] = {}
    for row in rows:
        gold = gold_steps.get(row["id"])
        if gold is None or "error" in row:
            continue
        history: list[Exchange] = []
        for step in row["steps"]:
            _add(found, gold, history, step["kb"])
            history.append(Exchange(step["query"], step["kb"], step["answer"]))
        if len(history) < max_steps:
            stopped = sum(row["counts"][name][0] for name in ("stop_accuracy", "premature_stop_rate"))
            _add(found, gold, history, STOP if stopped else MALFORMED)
    return {gold: dict(sorted(chosen.items())) for gold, chosen in sorted(found.items())}


def together(matrices: Iterable[Mapping[str, Mapping[str, int]]]) -> dict[str, dict[str, int]]:
    """Of several seeds: the sum."""
    found: dict[str, Counter[str]] = {}
    for matrix in matrices:
        for gold, chosen in matrix.items():
            found.setdefault(gold, Counter()).update(chosen)
    return {gold: dict(sorted(chosen.items())) for gold, chosen in sorted(found.items())}


def _add(found: dict[str, Counter[str]], gold: Sequence[GoldStep], history: Sequence[Exchange], chosen: str) -> None:
    right = " or ".join(sorted({need.kb for need in askable_needs(gold, history)})) or STOP
    found.setdefault(right, Counter())[chosen] += 1
