"""`python -m experiments.compare [RUN ...]`: runs side by side, and the settings in which they differ. Without arguments, all of runs/."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from experiments.config import RunConfigError, flat
from experiments.result_tables import HEADINGS, shown
from experiments.run_folder import RunFolder

COMPARED = ("f1_recall", "routing_accuracy", "stop_accuracy", "retrievals_per_question")
UNIMPORTANT = {"name", "runs_folder", "tracking.uri", "train.resume"}


def differing_settings(folders: Sequence[RunFolder]) -> dict[str, list[Any]]:
    """Dotted key -> value in each run, for keys that do not have one value in all of them."""
    settings = [flat(folder.config()) for folder in folders]
    keys = dict.fromkeys(key for found in settings for key in found if key not in UNIMPORTANT)
    values = {key: [found.get(key) for found in settings] for key in keys}
    return {key: found for key, found in values.items() if any(value != found[0] for value in found)}


def results_table(folders: Sequence[RunFolder]) -> Table:
    """A row for each run: iterations, seconds of training, and what it reached on its held-out questions."""
    table = Table(title="runs", title_justify="left", title_style="bold")
    for heading in ("run", "iterations", "train s", *(HEADINGS[name] for name in COMPARED), "F1-Recall gained"):
        table.add_column(heading, justify="left" if heading == "run" else "right")
    for folder in folders:
        found = folder.summary()
        iterations = found.get("iterations") or len(folder.metrics())
        seconds = found.get("seconds", {}).get("train")
        row = [folder.path.name, str(iterations), f"{seconds:,.0f}" if seconds else "–"]
        if "after" in found:
            row += [shown(found["after"]["overall"][name]) for name in COMPARED]
            row.append(shown(found["difference"]["f1_recall"], signed=True))
        else:
            row += ["unfinished", *[""] * len(COMPARED)]
        table.add_row(*row)
    return table


def settings_table(folders: Sequence[RunFolder]) -> Table | None:
    """None when all settings are equal."""
    differing = differing_settings(folders)
    if not differing:
        return None
    table = Table(title="settings in which they differ", title_justify="left", title_style="bold")
    table.add_column("setting")
    for folder in folders:
        table.add_column(folder.path.name, justify="right")
    for key, values in differing.items():
        table.add_row(key, *map(str, values))
    return table


def main(arguments: list[str]) -> int:
    console = Console(width=None if sys.stdout.isatty() else 140)
    paths = [Path(argument) for argument in arguments] or sorted(path.parent for path in Path("runs").glob("*/config.yaml"))
    try:
        if not paths:
            raise RunConfigError("no runs in runs/; make train makes one, or name the folders of runs")
        folders = [RunFolder.open(path) for path in paths]
        console.print(results_table(folders))
        if len(folders) > 1 and (differing := settings_table(folders)):
            console.print(differing)
    except RunConfigError as error:
        console.print(f"error: {error}", style="red", soft_wrap=True, markup=False)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
