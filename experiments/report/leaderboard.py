"""The leaderboard: a table of recipes in a Markdown page, between two comments, with a row for each run."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from experiments.command_line.terminal import markdown_cell
from experiments.config import CONFIGS, RunConfigError, TrainConfig, load_config, resolved_yaml
from experiments.config.reading import flattened, kind_of
from experiments.evaluation.result_tables import known
from experiments.evaluation.significance import Interval
from experiments.tracking.run_folder import RunFolder, flat_yaml, write_whole

BEGIN, END = "<!-- leaderboard: written by r1-router results add RUN -->", "<!-- end of the leaderboard -->"
METRICS = {"f1_recall": "F1-Recall", "exact_match": "exact match", "routing_accuracy": "routing"}
COLUMNS = ("recipe", "data", "policy", "hardware", "minutes", *METRICS.values(), "commit", "date", "command")
TO_THE_RESULT = (
    "set_up",
    "train",
    "validate",
    "checkpoint",
)  # phases until the trained policy is there: without measuring before and after
ELSEWHERE = (
    "runs_folder",
    "train.resume",
    "data.folder",
    "data.kb_folder",
    "evaluation.folder",
    "tracking.",
    "ray.",
)  # say nothing of the recipe
DERIVED = (
    *("learner.seed", "rollout.need_calibration", "rollout.gold_gains", "rollout.record_routes"),
    *("rollout.values.measured", "rollout.values.spare_answer_tokens"),
)  # follow other settings
DEFAULTS = "defaults"


def add_to_leaderboard(run: RunFolder, page: Path) -> str:
    """Writes the row of a finished run, in the place of an earlier one with the same command. Returns the recipe. Raises RunConfigError."""
    text = page.read_text(encoding="utf-8") if page.is_file() else ""
    before, begin, rest = text.partition(BEGIN)
    table, end, after = rest.partition(END)
    if not (begin and end):
        raise RunConfigError(f"{page}: has no leaderboard; expected the two lines {BEGIN} and {END}")
    cells = row(run)
    # The first two lines of the table are its header.
    found = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("|")][2:]
    kept = [earlier for earlier in found if len(earlier) == len(COLUMNS) and earlier[-1] != cells[-1]]
    rows = sorted([*kept, cells], key=lambda cells: (cells[COLUMNS.index("data")], -_result(cells), cells))
    lines = [f"| {' | '.join(line)} |" for line in (COLUMNS, ["---"] * len(COLUMNS), *rows)]
    write_whole(page, f"{before}{BEGIN}\n\n{chr(10).join(lines)}\n\n{END}{after}")
    return cells[0]


def row(run: RunFolder) -> list[str]:
    """The cells of `COLUMNS`. Raises RunConfigError for a run without results."""
    summary, settings = run.summary(), flat_yaml(run.path / "config.yaml")
    if "after" not in summary:
        raise RunConfigError(f"{run.path}: has no results in summary.json; let it finish: r1-router train ... train.resume=auto")
    recipe, command = recipe_of(settings)
    before, after = summary.get("before", {}).get("overall", {}), summary["after"]["overall"]
    commit, changed, _ = str(summary.get("git_commit") or "–").partition("+")
    cells = {
        "recipe": recipe,
        "data": f"{settings['data.name']}, {summary['after']['questions']} questions",
        "policy": _without_folder(settings["train.policy"]),
        "hardware": hardware(summary["machine"]),
        "minutes": f"{sum(summary['seconds'].get(phase, 0.0) for phase in TO_THE_RESULT) / 60:.1f}",
        **{label: _change(before.get(name), after.get(name)) for name, label in METRICS.items()},
        "commit": commit[:10] + (" with changes" if changed else ""),
        "date": f"{datetime.fromtimestamp(summary['finished'], UTC):%Y-%m-%d}",
        "command": f"`{command}`",
    }
    return [markdown_cell(cells[column]) for column in COLUMNS]


def recipe_of(settings: Mapping[str, Any]) -> tuple[str, str]:
    """(name, command) of the shipped configuration that differs least from the settings of a run, and what to add to it."""
    recipes = {DEFAULTS: list[str](), **{file.name: [file.name] for file in sorted(CONFIGS.glob("*.yaml"))}}
    mine = {
        key: value
        for key, value in settings.items()
        if not key.startswith(ELSEWHERE) and key not in DERIVED and kind_of(TrainConfig, key) is not None
    }
    differing = {}
    for name, arguments in recipes.items():
        base = flattened(yaml.safe_load(resolved_yaml(load_config(arguments))))  # lists, as in the file of a run
        differing[name] = [_setting(key, value) for key, value in mine.items() if key not in base or base[key] != value]
    nearest = min(differing, key=lambda name: len(differing[name]))
    return nearest, shlex.join(["r1-router", "train", *recipes[nearest], *differing[nearest]])


def _setting(key: str, value: Any) -> str:
    if isinstance(value, str):
        return f"{key}={_without_folder(value)}"
    return f"{key}={yaml.safe_dump(value, default_flow_style=True, width=10**6).splitlines()[0].replace(', ', ',')}"


def _without_folder(path: str) -> str:
    """The page is read elsewhere: a folder of this machine says nothing there."""
    return f"FOLDER/{Path(path).name}" if Path(path).is_absolute() else path


def hardware(machine: Mapping[str, Any]) -> str:
    gpus = [f"{count} x {name}" for name, count in Counter(machine["gpus"]).items()]
    return ", ".join([*gpus, f"{machine['cpus']} cores", f"{machine['memory_gib']} GiB"])


def _change(before: Interval | None, after: Interval | None) -> str:
    """`0.400 → 0.669 [0.625, 0.708]`."""
    if not after or not known(after):
        return "–"
    start = f"{before['value']:.3f} → " if before and known(before) else ""
    return f"{start}{after['value']:.3f} [{after['low']:.3f}, {after['high']:.3f}]"


def _result(cells: list[str]) -> float:
    """F1-Recall after training."""
    found = re.search(r"([\d.]+) \[", cells[COLUMNS.index(METRICS["f1_recall"])])
    return float(found[1]) if found else -1.0
