"""Whether the policy searches less for what it knows: its searches, by whether the same weights answer the question without retrieval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.evaluation.metrics import Counts
from experiments.evaluation.significance import columns, correlation, interval, paired


def searches_by_knowledge(without: Sequence[Counts], policy: Sequence[Counts], families: Sequence[str]) -> dict[str, Any]:
    """For summary.json, of all questions and `by_family`. `without`: the method without retrieval, on the same questions as the policy, each asked
    once; `known`: its exact matches. Questions without a gold answer, and those that one of the two has no counts of, are left out.
    `correlation`: of known (0 or 1) and number of searches (point-biserial). `within_families`: the same after the mean of the family was
    subtracted from both, so that families which are easy and short do not explain it."""
    without, policy = paired(without, policy)
    right, searches = columns(without, "exact_match"), columns(policy, "retrievals_per_question")
    asked = (right[:, 1] > 0) & (searches[:, 1] > 0)
    known, searched, family = right[asked, 0], searches[asked, 0], np.array(families)[asked]
    names, member = np.unique(family, return_inverse=True)
    centred = [x - (np.bincount(member, x) / np.bincount(member))[member] for x in (known, searched)]
    return {
        **_compared(known, searched),
        "within_families": correlation(*centred),
        "by_family": {str(name): _compared(known[family == name], searched[family == name]) for name in names},
    }


def _compared(known: np.ndarray, searched: np.ndarray) -> dict[str, Any]:
    """Both (questions,): 0 or 1, and the number of searches."""
    counted = np.stack([searched, np.ones(len(searched))], axis=1)
    return {
        "questions": len(known),
        "known": int(known.sum()),
        "searches_of_known": interval(counted[known == 1]),
        "searches_of_others": interval(counted[known == 0]),
        "correlation": correlation(known, searched),
    }
