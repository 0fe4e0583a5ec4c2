"""Files of a run folder as artifacts of its MLflow run, under the same paths; and the pictures and tables that are made for MLflow's pages.

`files.json` among the artifacts says what lies there, by content: a file is sent when it is new or another one.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.run_folder import RunFolder
from experiments.tracking.identity import FILE as IDENTITY
from experiments.tracking.plots import plot_curves
from experiments.tracking.run_description import measures_table

MANIFEST = "files.json"
TABLE, PICTURE = "tables/measures.json", "plots/curves.png"
MADE_OF = {TABLE: "summary.json", PICTURE: "metrics.jsonl"}
"""What is made here, from which file: made again when that file has changed."""
TABLES_TAG = "mlflow.loggedArtifacts"
"""By which MLflow's pages find tables."""


def artifact_files(folder: RunFolder, with_policy: bool) -> dict[str, Path]:
    """Artifact path -> file. Not checkpoints, which are for going on, nor traces, nor what is being written."""
    top = [file for file in folder.path.iterdir() if file.is_file() and file.name != IDENTITY and not file.name.startswith("trace-")]
    below = [file for part in ("trajectories", *(("policy",) if with_policy else ())) for file in (folder.path / part).rglob("*")]
    files = [file for file in [*top, *below] if file.is_file() and file.suffix not in (".new", ".partial")]
    return {file.relative_to(folder.path).as_posix(): file for file in sorted(files)}


def send_artifacts(client: Any, run_id: str, folder: RunFolder, with_policy: bool) -> int:
    """How many files were sent."""
    with tempfile.TemporaryDirectory() as made:
        files, there = artifact_files(folder, with_policy), files_there(client, run_id)
        digests = {path: file_digest(file) for path, file in files.items()}
        digests |= {path: digests[source] for path, source in MADE_OF.items() if source in digests}
        new = {path: files.get(path, Path(made) / Path(path).name) for path in digests if there.get(path) != digests[path]}
        _make(folder, {path: file for path, file in new.items() if path in MADE_OF})
        new = {path: file for path, file in new.items() if file.exists()}
        for path, file in new.items():
            parent = Path(path).parent.as_posix()
            client.log_artifact(run_id, str(file), None if parent == "." else parent)
        if new:
            client.log_text(run_id, json.dumps(there | digests, indent=1), MANIFEST)
            if TABLE in new:
                client.set_tag(run_id, TABLES_TAG, json.dumps([{"path": TABLE, "type": "table"}]))
    return len(new)


def file_digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()[:16]


def _make(folder: RunFolder, wanted: Mapping[str, Path]) -> None:
    """What there is nothing for is not made."""
    if PICTURE in wanted and (rows := folder.metrics()):
        plot_curves({folder.path.name: rows}, wanted[PICTURE])
    if TABLE in wanted and (table := measures_table(folder.summary()))["data"]:
        wanted[TABLE].write_text(json.dumps(table), encoding="utf-8")


def files_there(client: Any, run_id: str) -> dict[str, str]:
    """Artifact path -> digest of what was sent; empty where nothing was."""
    if MANIFEST not in {entry.path for entry in client.list_artifacts(run_id)}:
        return {}
    with tempfile.TemporaryDirectory() as place:
        return json.loads(Path(client.download_artifacts(run_id, MANIFEST, place)).read_text(encoding="utf-8"))
