"""Uploads a run folder to its MLflow run: whatever MLflow lacks, nothing twice. The folder is the only queue."""

import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from experiments.config import TrackingConfig
from experiments.tracking.evaluation_runs import close, evaluation_run
from experiments.tracking.fingerprints import read_fingerprints
from experiments.tracking.mlflow_connection import IDENTITY, connect, experiment_id, identity, note, parent_run
from experiments.tracking.model_registry import register_policy
from experiments.tracking.run_folder import RunFolder, file_checksum, flat_yaml
from experiments.tracking.traces import AFTER, BEFORE, TraceSender, send_new

PARAM_CHARACTERS, KEY_CHARACTERS = 6000, 250  # limits of MLflow for a parameter; the whole value is in config.yaml
AT_ONCE = {"params": 100, "tags": 100, "metrics": 1000}  # limits of one MLflow request
MAIN_SETTINGS = ("data.name", "rollout.mode", "rollout.group_size", "train.seed", "train.policy")
NO_METRICS = frozenset({"iteration", "finished"})  # in a line of metrics.jsonl: the step and its time


class RunUpload:
    """Every method may raise whatever MLflow raises; a later call continues where the failed one stopped."""

    def __init__(self, folder: Path, tracking: TrackingConfig):
        self.folder, self.tracking = RunFolder(folder), tracking
        self.run_id = self._experiment = ""
        self.points = self.files = 0  # values of metrics, and files, that MLflow did not have
        self.versions: list[str] = []  # new ones of the registered model: `name version`
        self._client: Any = None
        self._tags: dict[str, str] = {}
        self._known: set[tuple[str, int, float]] = set()  # metric, step and value of what MLflow has

    def open(self) -> None:
        """Find the folder's MLflow run, or create it, and add the parameters that it lacks."""
        if self.run_id:
            return
        from mlflow.entities import Param

        self._client = self._client or connect(self.tracking)
        known, settings = note(self.folder.path), parameters(self.folder.path)
        experiment = experiment_id(self._client, self.tracking)
        found = self._client.search_runs([experiment], filter_string=f"tags.run_key = '{known['key']}'", max_results=1)
        run = found[0] if found else self._create(experiment, known["key"], settings.get("name", self.folder.path.name))
        run_id, has, self._tags = run.info.run_id, run.data.params, dict(run.data.tags)
        self._log(run_id, "params", [Param(key, value) for key, value in settings.items() if key not in has])
        # A parameter cannot change, so a setting that a resumed run changed becomes a tag.
        self._log_tags(run_id, {f"changed.{key}": value for key, value in settings.items() if has.get(key, value) != value})
        for name in run.data.metrics:
            self._known |= {(name, point.step, point.value) for point in self._client.get_metric_history(run_id, name)}
        self.run_id, self._experiment, same = run_id, experiment, known.get("run_id") == run_id
        sent = {"files": known.get("files", {}) if same else {}, "traces": known.get("traces", 0) if same else 0}
        note(self.folder.path, uri=self.tracking.uri, experiment=self.tracking.experiment, run_id=run_id, **sent)

    def _create(self, experiment: str, key: str, name: str) -> Any:
        tags, rows = {"run_key": key, "mlflow.user": os.environ.get("USER", "")}, self.folder.metrics()
        if self.tracking.parent:
            tags["mlflow.parentRunId"] = parent_run(self._client, experiment, self.tracking.parent)
        began = int(1000 * (rows[0]["finished"] if rows else time.time()))
        return self._client.create_run(experiment, start_time=began, run_name=name, tags=tags)

    def mark_running(self) -> None:
        self._client.update_run(self.run_id, status="RUNNING")

    def send_tags(self) -> None:
        self._log_tags(self.run_id, tags(self.folder))

    def send_iterations(self) -> None:
        self._log_metrics((_numbers(row), int(row["iteration"]), float(row["finished"])) for row in self.folder.metrics())

    def send_traces(self) -> None:
        """Those of `traces.jsonl`; `traces` of tracking.json says where the last one that MLflow has ends."""
        known, file, runs = identity(self.folder.path), self.folder.traces, dict[str, str]()
        if not file.exists() or file.stat().st_size == known["traces"]:
            return
        name = str(flat_yaml(self.folder.path / "config.yaml").get("name", self.folder.path.name))
        tracer = TraceSender(self.tracking.uri, self._experiment, known["key"], name)

        def send(line: Mapping[str, Any]) -> None:
            if (phase := line["phase"]) not in runs:
                runs[phase] = self._measurement(phase) if phase in (BEFORE, AFTER) else self.run_id
            tracer.send(line, runs[phase])

        note(self.folder.path, traces=send_new(file, known["traces"], send))

    def _measurement(self, phase: str) -> str:
        """Id of the child run of what was measured before or after training, for MLflow's page of evaluations."""
        settings = flat_yaml(self.folder.path / "config.yaml")
        heldout = read_fingerprints(self.folder.path).get("dataset", {}).get("splits", {}).get("heldout", {}).get("fingerprint", "unknown")
        key, name = identity(self.folder.path)["key"], f"{settings.get('name', self.folder.path.name)}: {phase}"
        dataset = f"{settings.get('data.name')} held-out", heldout
        return evaluation_run(self._client, self._experiment, f"{key}/{phase}", name, dataset, self.run_id)

    def finish(self, outcome: str) -> None:
        """Everything that is missing: iterations, results, files, the policy. `outcome`: FINISHED, FAILED or KILLED."""
        self.send_iterations()
        summary, file = self.folder.summary(), self.folder.path / "metrics.jsonl"
        end = float(summary.get("finished") or (file.stat().st_mtime if file.exists() else time.time()))
        self._log_metrics((metrics, step, end) for metrics, step in result_metrics(summary))
        self._send_files()
        measured = "after" in summary or outcome == "FINISHED"  # trainings of a study are measured by the study
        if self.tracking.model and self.folder.policy.is_dir() and measured:
            self.versions += register_policy(self._client, self.run_id, self.folder, self.tracking)
        self.send_tags()
        if self._client.get_run(self.run_id).info.status != outcome:
            self._client.set_terminated(self.run_id, outcome, end_time=int(end * 1000))
        for phase in (BEFORE, AFTER):
            if phase in summary:
                close(self._client, self._measurement(phase), summary[phase])
        self.send_traces()

    def _send_files(self) -> None:
        sent, files = identity(self.folder.path)["files"], artifact_files(self.folder, with_policy=bool(self.tracking.model))
        checksums = {path: file_checksum(file) for path, file in files.items()}
        new = [path for path in files if sent.get(path) != checksums[path]]
        for path in new:
            self._client.log_artifact(self.run_id, str(files[path]), path.rpartition("/")[0] or None)
        note(self.folder.path, files=sent | checksums)
        self.files += len(new)

    def _log(self, run_id: str, kind: str, new: list[Any]) -> None:
        for start in range(0, len(new), AT_ONCE[kind]):
            self._client.log_batch(run_id, **{kind: new[start : start + AT_ONCE[kind]]})

    def _log_tags(self, run_id: str, wanted: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        self._log(run_id, "tags", [RunTag(name, value) for name, value in wanted.items() if self._tags.get(name) != value])
        self._tags |= wanted

    def _log_metrics(self, wanted: Iterable[tuple[Mapping[str, float], int, float]]) -> None:
        """`wanted`: (metrics, step, Unix seconds)."""
        from mlflow.entities import Metric

        points = [(allowed(name), step, value, at) for metrics, step, at in wanted for name, value in metrics.items()]
        new = [Metric(name, value, int(at * 1000), step) for name, step, value, at in points if (name, step, value) not in self._known]
        self._log(self.run_id, "metrics", new)
        self._known |= {(point.key, point.step, point.value) for point in new}
        self.points += len(new)


def parameters(folder: Path) -> dict[str, str]:
    """Every setting of config.yaml under its dotted key, sorted, in a form that MLflow takes."""
    found = {allowed(key): str(value) for key, value in sorted(flat_yaml(folder / "config.yaml").items())}
    return {key: value if len(value) <= PARAM_CHARACTERS else value[: PARAM_CHARACTERS - 1] + "…" for key, value in found.items()}


def allowed(key: str) -> str:
    return re.sub(r"[^\w.\- :/]", "_", key)[:KEY_CHARACTERS]


def result_metrics(summary: Mapping[str, Any]) -> Iterator[tuple[dict[str, float], int]]:
    """(metrics, step) from summary.json: `heldout_METRIC` before training at step 0 and of the best policy at the last iteration,
    `heldout_difference_METRIC` (paired), and `heldout_f1_recall_METHOD` of the baselines."""
    baselines = {method: found["overall"]["f1_recall"] for method, found in (summary.get("baselines") or {}).items()}
    for prefix, figures, step in (
        ("heldout", summary.get("before", {}).get("overall", {}), 0),
        ("heldout", summary.get("after", {}).get("overall", {}), int(summary.get("iterations") or 0)),
        ("heldout_difference", summary.get("difference", {}), 0),
        ("heldout_f1_recall", baselines, 0),
    ):
        yield _numbers({f"{prefix}_{name}": figure["value"] for name, figure in figures.items()}), step


def tags(folder: RunFolder) -> dict[str, str]:
    """Tags for filtering and grouping runs, and the description on the run's page: the main settings."""
    settings = flat_yaml(folder.path / "config.yaml")
    main = ", ".join(f"`{key}={settings.get(key)}`" for key in MAIN_SETTINGS)
    summary, prints = folder.summary(), read_fingerprints(folder.path)
    commit, _, changes = str(summary.get("git_commit") or prints.get("git_commit") or "").partition("+")
    found = {"run_folder": str(folder.path.resolve()), "mlflow.source.name": "experiments.train", "mlflow.source.type": "LOCAL"}
    found |= {"mlflow.source.git.commit": commit, "git_dirty": str(bool(changes)).lower() if commit else ""}
    found["warnings"] = ", ".join(dict.fromkeys(warning["name"] for warning in summary.get("warnings", [])))
    found["mlflow.note.content"] = f"{main}. Results with intervals: report.html, among the artifacts."
    for split, facts in prints.get("dataset", {}).get("splits", {}).items():
        found[f"dataset.{split}"] = facts["fingerprint"]
    for split, kbs in prints.get("knowledge_bases", {}).items():
        found |= {allowed(f"kb.{split}.{name}"): digest for name, digest in kbs.items()}
    return {name: value for name, value in found.items() if value}


def artifact_files(folder: RunFolder, with_policy: bool) -> dict[str, Path]:
    """Artifact path -> file; without checkpoints, traces and half-written files."""
    top = [file for file in folder.path.iterdir() if file.name != IDENTITY and not file.name.startswith("trace")]
    below = [file for part in ("trajectories", *(("policy",) if with_policy else ())) for file in (folder.path / part).rglob("*")]
    files = [file for file in [*top, *below] if file.is_file() and file.suffix not in (".new", ".partial")]
    return {file.relative_to(folder.path).as_posix(): file for file in sorted(files)}


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    return {key: float(value) for key, value in row.items() if key not in NO_METRICS and isinstance(value, int | float)}
