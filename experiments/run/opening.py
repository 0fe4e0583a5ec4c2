"""What a training says before it begins, in at most 15 lines, and what to do after it. All settings: config.yaml of the run, or `--verbose`."""

import json
import math
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from experiments.config import TrainConfig, flat, with_derived
from experiments.datasets import Dataset
from experiments.tracking.run_folder import RunFolder
from rollout.engines import chosen_engine

WIDTH = 100
MOST_CHANGED_LINES = 6
IN_OTHER_LINES = ("name", "runs_folder", "train.policy", "train.iterations", "train.minutes", "train.turns", "data.name")


def opening_lines(config: TrainConfig, dataset: Dataset, policy: str) -> Iterator[str]:
    train, rollout, name = config.train, config.rollout, config.data.name
    asked = f"{train.questions_per_iteration} questions an iteration, {rollout.group_size} answers to each turn"
    yield f"{config.name}: Step-GRPO, {_bounds(config)}; {asked}"
    engine = chosen_engine(rollout, train.gpus_per_rollout_worker > 0)
    yield f"policy      {policy}{_weights(policy)}; sampled by the engine {engine}"
    heldout = f"{len(dataset.validation)} for validation, {len(dataset.heldout):,} held out"
    found = f"; gold steps found in {config.data.gold_samples} episodes of each" if config.data.gold == "found" else ""
    yield f"questions   {name}: {len(dataset.train):,} for training{found}, {heldout}"
    kbs = ", ".join(dict.fromkeys(source.name for source in (*dataset.training_kbs, *dataset.evaluation_kbs)))
    yield f"searches    {kbs or 'none'}: at most {rollout.max_steps} for a question"
    baselines = f"; beside: {', '.join(config.evaluation.baselines)}" if config.evaluation.baselines else ""
    yield f"measures    the held-out questions before and after{baselines}"
    yield f"results     {Path(config.runs_folder) / config.name} (report.html; all settings: config.yaml, or --verbose)"
    yield from _changed(config)


def next_commands(folder: RunFolder) -> str:
    lines = (
        f"report:   {folder.report}",
        f"try it:   r1-router serve {folder.path}",
        f"measure:  r1-router evaluate {folder.path} method=policy,random,all,direct",
    )
    return "\n".join(lines)


def _bounds(config: TrainConfig) -> str:
    """How long it trains."""
    train = config.train
    bounds = [f"{train.minutes:g} minutes"] if train.minutes else []
    bounds += [f"{train.turns:,} turns"] if train.turns else []
    bounds += [f"{train.iterations:,} iterations"] if train.iterations != TrainConfig().train.iterations or not bounds else []
    return f"at most {' or '.join(bounds)}"


def _weights(policy: str) -> str:
    """The number of weights, from the headers of the files; empty where there are none in this form."""
    total = 0
    for file in Path(policy).glob("*.safetensors"):
        with file.open("rb") as opened:
            header = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
        for shape in (entry["shape"] for name, entry in header.items() if name != "__metadata__"):
            total += math.prod(shape)
    return f", {total / 1e6:,.1f} million weights" if total else ""


def _changed(config: TrainConfig) -> Iterator[str]:
    """The settings that differ from the defaults."""
    defaults = flat(with_derived(TrainConfig()))
    changed = [f"{key}={_text(value)}" for key, value in flat(config).items() if value != defaults.get(key) and key not in IN_OTHER_LINES]
    lines = textwrap.wrap(", ".join(changed), WIDTH - 12, break_on_hyphens=False) or ["nothing"]
    if len(lines) > MOST_CHANGED_LINES:
        lines = [*lines[: MOST_CHANGED_LINES - 1], f"... ({len(changed)} in all)"]
    for number, line in enumerate(lines):
        yield f"{'changed' if not number else '':12}{line}"


def _text(value: Any) -> str:
    return f"[{','.join(map(str, value))}]" if isinstance(value, list | tuple) else str(value)
