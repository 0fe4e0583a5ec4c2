"""Entropy of the knowledge bases that plan turns name, by kind of question: shows when all kinds go to the same one. Pure functions."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping

from rewards.scored_summary import Route


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
