"""Which runs a command line means: folders, names, ids of MLflow, filters.

python -m experiments.compare laptop runs/seed1 4f0c...e1 "params.`train.seed` = '2'"
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from experiments.comparison.runs import ComparedRun, named
from experiments.config import RunConfigError, TrackingConfig
from experiments.run_folder import run_folders
from experiments.tracking.artifacts import files_there
from experiments.tracking.identity import identity, note
from experiments.tracking.store import bound_waiting, connect

RUN_ID = re.compile(r"[0-9a-f]{32}")
FILTER = re.compile(
    r"^\s*(metrics?|params?|tags?|attributes?|datasets?)\.\S+.*(=|<|>|like|in)|^\s*(run_name|status|run_id|start_time)\s*(=|!=|<|>|like)",
    re.I,
)
AT_ONCE = 100
"""Runs that MLflow is asked for at a time."""
NEEDED = ("config.yaml", "summary.json", "metrics.jsonl", "fingerprints.json", "trajectories/after.parquet")
"""Artifacts that a comparison reads."""


def is_filter(argument: str) -> bool:
    """Whether it is in MLflow's filter language: "metrics.`heldout/f1_recall` > 0.5"."""
    return bool(FILTER.match(argument))


def chosen_runs(arguments: Sequence[str], runs_folder: Path, tracking: TrackingConfig, downloads: Path) -> list[ComparedRun]:
    """In the order of the arguments, each once; without any, all of `runs_folder`, those of studies as well. Runs whose folder is not on this
    machine are read from MLflow, into `downloads`. Raises RunConfigError, one line, for what cannot be found."""
    local = run_folders(runs_folder)
    if not arguments and not local:
        raise RunConfigError(f"no runs in {runs_folder}/; make train makes one, or name the folders of runs")
    folders: list[Path] = [] if arguments else local
    for argument in arguments:
        folders += _meant(argument, local, tracking, downloads)
    return named(folders)


def _meant(argument: str, local: Sequence[Path], tracking: TrackingConfig, downloads: Path) -> Iterable[Path]:
    if is_filter(argument):
        return _found(argument, local, tracking, downloads)
    if (Path(argument) / "config.yaml").is_file():
        return [Path(argument)]
    called_so = [folder for folder in local if folder.name == argument]
    called_so = [folder for folder in called_so if len(folder.parts) == min(len(found.parts) for found in called_so)]
    if len(called_so) > 1:
        raise RunConfigError(f"{argument}: {len(called_so)} runs have that name; name one by its folder: {', '.join(map(str, called_so))}")
    if called_so:
        return called_so
    if RUN_ID.fullmatch(argument):
        return [path for path in local if identity(path).get("run_id") == argument] or [_by_id(argument, local, tracking, downloads)]
    names = ", ".join(path.name for path in local[:12]) or "none"
    raise RunConfigError(
        f"{argument}: no run folder, no run of that name ({names}), no run id of 32 hex digits, and no filter such as \"params.`train.seed` = '1'\""
    )


def _found(filter_string: str, local: Sequence[Path], tracking: TrackingConfig, downloads: Path) -> list[Path]:
    client = _client(tracking)
    try:
        experiment = client.get_experiment_by_name(tracking.experiment)
        runs = all_found(client, experiment.experiment_id, filter_string) if experiment else []
    except Exception as error:
        raise RunConfigError(f"{filter_string}: MLflow at {tracking.uri} says: {' '.join(str(error).split())[:300]}") from None
    kept = [run for run in runs if "run_key" in run.data.tags]  # not the parents of sweeps, nor earlier comparisons
    if not kept:
        raise RunConfigError(f"{filter_string}: no run of experiment {tracking.experiment} at {tracking.uri} fits")
    return [_place(client, run, local, downloads) for run in kept]


def all_found(client: Any, experiment: str, filter_string: str) -> list[Any]:
    """Page by page: MLflow hands out a bounded number at a time."""
    found: list[Any] = []
    token: str | None = None
    while token != "":
        page = client.search_runs([experiment], filter_string=filter_string, max_results=AT_ONCE, page_token=token)
        found += page
        token = page.token or ""
    return found


def _by_id(run_id: str, local: Sequence[Path], tracking: TrackingConfig, downloads: Path) -> Path:
    client = _client(tracking)
    try:
        return _place(client, client.get_run(run_id), local, downloads)
    except RunConfigError:
        raise
    except Exception as error:
        raise RunConfigError(f"{run_id}: MLflow at {tracking.uri} says: {' '.join(str(error).split())[:300]}") from None


def _place(client: Any, run: Any, local: Sequence[Path], downloads: Path) -> Path:
    """The folder of this run: here, by its key, or what the comparison needs of it from MLflow."""
    key, name = run.data.tags.get("run_key"), run.info.run_name
    for path in (*local, Path(run.data.tags.get("run_folder", ""))):
        if key and identity(path).get("key") == key:
            return path
    there = files_there(client, run.info.run_id)
    if not there:
        raise RunConfigError(f"{run.info.run_id} ({name}): its folder is not on this machine, and its files are not in MLflow")
    place = downloads / f"{name}-{run.info.run_id[:6]}"
    for file in NEEDED:
        if file in there:
            (place / file).parent.mkdir(parents=True, exist_ok=True)
            client.download_artifacts(run.info.run_id, file, str((place / file).parent))
    outcome = run.info.status if run.info.status in ("FINISHED", "FAILED", "KILLED") else ""
    note(place, key=key, run_id=run.info.run_id, outcome=outcome)
    return place


def _client(tracking: TrackingConfig) -> Any:
    bound_waiting()
    return connect(tracking)
