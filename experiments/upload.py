"""`r1-router upload [RUN ...] [tracking.KEY=value ...]`: upload to MLflow what it lacks of run folders.

For runs whose MLflow server was not reachable. RUN is a run folder, or a name in runs/; by default every run folder in runs/, studies included.
Settings default to those of the run. A second upload changes nothing.

    r1-router upload laptop tracking.uri=http://mlflow:5000
"""

from pathlib import Path

from experiments.command_line.entry_point import FAILED, command
from experiments.command_line.terminal import Console
from experiments.config import RunConfigError, TrackingConfig
from experiments.config.reading import field_names, is_setting, read_settings
from experiments.tracking.mlflow_connection import bound_waiting, identity
from experiments.tracking.mlflow_upload import RunUpload
from experiments.tracking.run_folder import RunFolder, flat_yaml, run_folders


def upload(folder: RunFolder, settings: list[str]) -> RunUpload:
    """`settings`: `tracking.KEY=value`. Raises what MLflow raises."""
    run = RunUpload(folder.path, tracking_of(folder, settings))
    run.open()
    run.finish(identity(folder.path).get("outcome") or ("FINISHED" if "after" in folder.summary() else "KILLED"))
    return run


def tracking_of(folder: RunFolder, settings: list[str]) -> TrackingConfig:
    """The run's own `tracking` section, under `settings`."""
    own = flat_yaml(folder.path / "config.yaml")
    known = [f"{name}={own[f'tracking.{name}']}" for name in field_names(TrackingConfig) if f"tracking.{name}" in own]
    return read_settings(TrackingConfig, [*known, *settings], "tracking.")


@command
def main(arguments: list[str]) -> int:
    console = Console()
    bound_waiting(seconds=30, retries=3)
    settings = [argument for argument in arguments if is_setting(argument)]
    read_settings(TrackingConfig, settings, "tracking.")
    named = [path if (path := Path(name)).is_dir() else Path("runs") / name for name in arguments if name not in settings]
    folders = [RunFolder.open(path) for path in named or run_folders(Path("runs"))]
    if not folders:
        raise RunConfigError("no runs in runs/; name the folders of runs")
    for folder in folders:
        try:
            sent = upload(folder, settings)
        except Exception as error:  # whatever MLflow raises; the user may try again
            message = f"error: {folder.path}: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
            console.print(message, style="red", soft_wrap=True)
            return FAILED
        new = [f"{sent.points:,} figures" if sent.points else "", f"{sent.files} files" if sent.files else "", *sent.versions]
        what = ", ".join(filter(None, new)) or "nothing was missing"
        console.print(f"{folder.path}: {what} (run {sent.run_id})", soft_wrap=True)
    return 0
