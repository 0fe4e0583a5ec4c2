"""Files of a run folder as artifacts of its MLflow run, under the same paths; and the pictures and tables that are made for MLflow's pages.

`files.json` among the artifacts says what lies there, by content: a file is sent when it is new or another one.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

from experiments.run_folder import RunFolder
from experiments.tracking.identity import FILE as IDENTITY
from experiments.tracking.plots import plot_curves
from experiments.tracking.run_description import measures_table

MANIFEST = "files.json"
TABLE = "tables/measures.json"
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
        files = artifact_files(folder, with_policy) | _made_files(folder, Path(made))
        there = _there(client, run_id)
        digests = {path: file_digest(file) for path, file in files.items()}
        new = {path: file for path, file in files.items() if there.get(path) != digests[path]}
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


def _made_files(folder: RunFolder, made: Path) -> dict[str, Path]:
    rows, summary, found = folder.metrics(), folder.summary(), {}
    if rows:
        found["plots/curves.png"] = made / "curves.png"
        plot_curves({summary.get("name", folder.path.name): rows}, found["plots/curves.png"])
    table = measures_table(summary)
    if table["data"]:
        found[TABLE] = made / "measures.json"
        found[TABLE].write_text(json.dumps(table), encoding="utf-8")
    return found


def _there(client: Any, run_id: str) -> dict[str, str]:
    if MANIFEST not in {entry.path for entry in client.list_artifacts(run_id)}:
        return {}
    with tempfile.TemporaryDirectory() as place:
        return json.loads(Path(client.download_artifacts(run_id, MANIFEST, place)).read_text(encoding="utf-8"))
