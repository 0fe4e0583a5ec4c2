"""Run folders as a run writes them, from episodes written by hand."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from episodes import RETRIEVERS, episode, question, step, stop

from experiments.config import TrainConfig
from experiments.evaluation.metrics import count
from experiments.evaluation.significance import paired_difference, summarise
from experiments.tracking.fingerprints import FILE as FINGERPRINTS
from experiments.tracking.run_folder import RunFolder
from rollout.records import Trajectory

QUESTIONS = 24


def row(iteration: int, **more: Any) -> dict[str, Any]:
    figures = {"reward": 0.5 + iteration / 100, "reward_plan": 0.4, "routing": 0.3, "entropy": 1.5, "seconds_rollout": 2.0, "use_text": 0.7}
    return (
        {"iteration": iteration, "finished": 1.7e9 + 10 * iteration, "turns": 100, "sampled_tokens": 900, "policy_version": iteration}
        | figures
        | more
    )


def answered(number: int, right: bool) -> Trajectory:
    """A question whose text depends on its number, so that other numbers are other questions."""
    asked = dataclasses.replace(question(number), text=f"What is the capital of Kormu, in year {number}?")
    said = "Tasla" if right else "Runo"
    return episode(asked, step("text" if right else "table", said), stop(), answer=said)


def begun(config: TrainConfig, rows: int = 3) -> RunFolder:
    folder = RunFolder.start(config)
    for iteration in range(1, rows + 1):
        folder.add_metrics(row(iteration))
    return folder


def finished(
    config: TrainConfig,
    right_after: Callable[[int], bool] = lambda number: number % 2 == 0,
    numbers: Sequence[int] = range(QUESTIONS),
    rows: int = 3,
    fingerprint: str = "aaaa",
    kb: str = "1111",
    **summary: Any,
) -> RunFolder:
    """`numbers`: the held-out questions; `right_after`: which of them the trained policy answers. Before training it is every fifth."""
    folder = begun(config, rows)
    before = [answered(number, number % 5 == 0) for number in numbers]
    after = [answered(number, right_after(number)) for number in numbers]
    counts = [[count(trajectory, RETRIEVERS) for trajectory in some] for some in (before, after)]
    for name, some, counted in zip(("before", "after"), (before, after), counts, strict=True):
        folder.write_trajectories(name, some, counted)
    sides = [{"questions": len(numbers), "overall": summarise(counted), "by_family": {}} for counted in counts]
    folder.write_summary(
        {
            "name": config.name,
            "before": sides[0],
            "after": sides[1],
            "difference": paired_difference(*counts),
            "baselines": {"random": sides[0]},
            "iterations": rows,
            "turns": 100 * rows,
            "sampled_tokens": 900 * rows,
            "seconds": {"train": 12.5},
            "finished": 1.7e9 + 1000,
            "git_commit": "0123456789abcdef0123456789abcdef01234567+changes",
            "machine": {"cpus": 2, "memory_gib": 24, "gpus": []},
        }
        | summary
    )
    splits = {name: {"questions": 8, "fingerprint": f"{fingerprint}-{name}"} for name in ("training", "validation")}
    splits["heldout"] = {"questions": len(numbers), "fingerprint": f"{fingerprint}-heldout"}
    prints = {
        "dataset": {"name": config.data.name, "splits": splits},
        "knowledge_bases": {"training": {"text": kb}, "evaluation": {"text": kb}},
    }
    (folder.path / FINGERPRINTS).write_text(json.dumps(prints))
    return folder


def config_in(folder: Path, name: str, **tracking: Any) -> TrainConfig:
    config = TrainConfig(name=name, runs_folder=str(folder / "runs"))
    return dataclasses.replace(config, tracking=dataclasses.replace(config.tracking, **tracking))
