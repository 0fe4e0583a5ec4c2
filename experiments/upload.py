"""`python -m experiments.upload RUN ... [tracking.KEY=value ...]`: run folders to MLflow, as far as they are not there.

For runs whose MLflow was away, or that were made on a machine without one. RUN is a run folder, or a name in runs/; without any, every run
folder in runs/, those of studies as well. Running it twice changes nothing.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from experiments.command_settings import read_settings
from experiments.config import RunConfigError, TrackingConfig
from experiments.run_folder import RunFolder, run_folders
from experiments.tracking.identity import identity
from experiments.tracking.run_description import flat_yaml
from experiments.tracking.run_upload import RunUpload, Sent
from experiments.tracking.store import bound_waiting

FAILED, WRONG_INPUT = 1, 2
STARTS = "tracking."


@dataclass
class UploadSettings:
    uri: str = ""
    """The store; empty: the one that the run was told."""
    experiment: str = ""
    """Likewise."""
    parent: str = ""
    """Likewise: name of the parent run."""
    model: str | None = None
    """Begins the name under which policies are registered; empty: policies stay where they are; null: likewise what the run was told."""


def upload(folder: RunFolder, settings: UploadSettings) -> tuple[Sent, str]:
    """What was sent, and the id of the run. Raises what MLflow raises."""
    run = RunUpload(folder.path, told_by(folder, settings))
    run.open()
    run.metrics()
    run.results()
    run.describe()
    run.close(outcome_of(folder))
    return run.sent, run.run_id


def told_by(folder: RunFolder, settings: UploadSettings) -> TrackingConfig:
    """What the run was told, where the command does not say otherwise."""
    said = flat_yaml(folder.path / "config.yaml")
    return TrackingConfig(
        uri=settings.uri or said.get("tracking.uri") or TrackingConfig.uri,
        experiment=settings.experiment or said.get("tracking.experiment") or TrackingConfig.experiment,
        parent=settings.parent or said.get("tracking.parent") or "",
        model=said.get("tracking.model", TrackingConfig.model) if settings.model is None else settings.model,
    )


def outcome_of(folder: RunFolder) -> str:
    """How the run ended: as it said itself; of an older folder, and one that was killed before it could say so, as its summary shows."""
    return identity(folder.path).get("outcome") or ("FINISHED" if "after" in folder.summary() else "KILLED")


def main(arguments: list[str]) -> int:
    console = Console(width=None if sys.stdout.isatty() else 160)
    bound_waiting(seconds=30, retries=3)
    try:
        told = [argument.removeprefix(STARTS) for argument in arguments if "=" in argument]
        settings = read_settings(UploadSettings, [argument + "''" if argument.endswith("=") else argument for argument in told])
        named = [argument for argument in arguments if "=" not in argument]
        found = [path if (path := Path(name)).is_dir() else Path("runs") / name for name in named]
        folders = [RunFolder.open(path) for path in found or run_folders(Path("runs"))]
        if not folders:
            raise RunConfigError("no runs in runs/; name the folders of runs")
    except RunConfigError as error:
        console.print(f"error: {error}", style="red", soft_wrap=True, markup=False, highlight=False)
        return WRONG_INPUT
    for folder in folders:
        try:
            sent, run_id = upload(folder, settings)
        except Exception as error:  # whatever MLflow raises; the user may try again
            said = " ".join(str(error).split())[:300]
            console.print(
                f"error: {folder.path}: {type(error).__name__}: {said}", style="red", soft_wrap=True, markup=False, highlight=False
            )
            return FAILED
        new = [f"{sent.points:,} figures" if sent.points else "", f"{sent.files} files" if sent.files else "", *sent.versions]
        what = ", ".join(filter(None, new)) or "nothing was missing"
        console.print(f"{folder.path}: {what} (run {run_id})", soft_wrap=True, markup=False, highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
