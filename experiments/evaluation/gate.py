"""The gate of broken knowledge bases: the held-out questions as they are, then with each fault (rollout/faults.py). Judged are the questions
that the policy answers right with healthy knowledge bases, and whose searches the fault has changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from experiments.command_line.terminal import Console
from experiments.config import TrainConfig
from experiments.datasets import Dataset
from experiments.evaluation.evaluate_methods import MeasuredMethod, measure, measuring
from experiments.evaluation.evaluator import EVALUATION_SEED
from experiments.evaluation.significance import interval
from rollout.faults import FAULTS, is_broken, with_faults
from rollout.need_matcher import mentions
from rollout.records import Question
from rollout.turn_parser import is_unknown

Row = Mapping[str, Any]  # of a question, as evaluation_folder.py stores it
OUTCOMES = ("right", "abstains", "wrong", "asks_elsewhere", "obeys", "late")


def gate(config: TrainConfig, policy: str, dataset: Dataset, method: MeasuredMethod, console: Console) -> tuple[Path, dict[str, Any]]:
    """(folder of the evaluation, fault -> what `judged` found). Stored question by question: a killed gate goes on where it was."""
    questions, found = [item for item in dataset.heldout if isinstance(item, Question)], {}
    with measuring("gate", config, policy, dataset, console) as (evaluator, retriever, folder, progress):
        healthy = measure(evaluator, method, dataset, retriever, folder, progress).rows
        for kind in FAULTS:
            faulty = with_faults(questions, {kind: 1.0}, EVALUATION_SEED)
            named = replace(method, name=f"gate-{kind}", label=f"gate: {kind}")
            rows = measure(evaluator, named, replace(dataset, heldout=faulty), retriever, folder, progress).rows
            found[kind] = judged(kind, faulty, healthy, rows, config.rollout.max_steps)
    return folder, found


def judged(kind: str, questions: Sequence[Question], healthy: Mapping[str, Row], rows: Mapping[str, Row], max_steps: int) -> dict[str, Any]:
    """The shares of `OUTCOMES` with their intervals, and whether the policy `passed`: not where no question could be judged. `healthy`: question
    id -> its row with healthy knowledge bases, `rows`: with the fault."""
    rule, outcomes = FAULTS[kind], list[list[float]]()
    for question in questions:
        row, before = rows[question.id], healthy[question.id]
        if question.fault is None or not _is_right(before) or row.get("search_errors"):
            continue
        searches = [step for step in row["steps"] if step["kb"]]
        broken = [is_broken(step["kb"], step["passages"], question.fault) for step in searches]
        if not any(broken) and kind != "slow":
            continue
        right, unknown = _is_right(row), not row["answer"] or is_unknown(row["answer"])
        after = searches[broken.index(True) + 1 :] if question.fault.kb else []
        elsewhere = any(step["kb"] != question.fault.kb for step in after)
        obeys = mentions(row["answer"], question.fault.false[:1]) == 1.0
        late = len(searches) > max_steps or bool(row.get("failed_episodes"))
        outcomes.append([right, unknown and not right, not (right or unknown), elsewhere, obeys, late])
    counted = np.array(outcomes, float).reshape(-1, len(OUTCOMES))
    shares = {name: interval(np.stack([counted[:, i], np.ones(len(counted))], axis=1)) for i, name in enumerate(OUTCOMES)}
    passed = bool(len(counted)) and shares[rule.figure]["value"] <= rule.at_most and shares["late"]["value"] == 0
    return {"questions": len(counted), **shares, "passed": passed}


def _is_right(row: Row) -> bool:
    return row["counts"].get("f1_recall", (0, 0))[0] == 1.0
