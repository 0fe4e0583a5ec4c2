"""The best policy of a run in MLflow's model registry: a version of `MODEL-DATASET`, with the alias `best`.

folder = mlflow.artifacts.download_artifacts("models:/r1-router-atlas@best")     # Hugging Face format; the newest: r1-router-atlas/latest
Policy.load(folder)     # or AutoModelForImageTextToText.from_pretrained(folder)
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any

from experiments.config import TrackingConfig
from experiments.fingerprints import read_fingerprints
from experiments.run_folder import RunFolder
from experiments.tracking.artifacts import file_digest
from experiments.tracking.run_description import flat_yaml

JUDGED_BY, ELSE_BY = "f1_recall", "validation"
"""`best` has the highest F1-Recall among the versions that were measured on the same held-out questions as the newest; where none of them was (the
trainings of a study are measured by the study, not by the run), the highest score on the validation questions."""


def model_name(tracking: TrackingConfig, dataset: str) -> str:
    """One name for each data set: policies that answer other questions are not versions of each other."""
    return re.sub(r"[^\w\-]+", "-", f"{tracking.model}-{dataset}")


def register_policy(client: Any, run_id: str, folder: RunFolder, tracking: TrackingConfig) -> list[str]:
    """Needs the policy among the run's artifacts. A policy that is registered already, by its content, is not registered again.

    What was registered: at most one `name version`."""
    summary, settings = folder.summary(), flat_yaml(folder.path / "config.yaml")
    name = model_name(tracking, str(settings.get("data.name")))
    digests = "".join(f"{file.name} {file_digest(file)}\n" for file in sorted(folder.policy.glob("*")) if file.is_file())
    digest = hashlib.sha256(digests.encode()).hexdigest()[:16]
    versions = _versions(client, name)
    known = [version for version in versions if version.run_id == run_id and version.tags.get("policy") == digest]
    if known:
        _set_best(client, name)
        return []
    if not client.search_registered_models(filter_string=f"name = '{name}'"):
        client.create_registered_model(
            name,
            description=f"Policies that decide when and where to retrieve, trained on `{settings.get('data.name')}`; Hugging Face format.",
        )
    figure = summary["after"]["overall"][JUDGED_BY] if "after" in summary else None
    score = summary.get("best", {}).get("score")
    heldout = read_fingerprints(folder.path).get("dataset", {}).get("splits", {}).get("heldout", {}).get("fingerprint", "")
    tags = {
        **({JUDGED_BY: str(figure["value"])} if figure else {}),
        **({ELSE_BY: str(score)} if score is not None else {}),
        "iteration": str(summary.get("best", {}).get("iteration", summary.get("iterations"))),
        "policy": digest,
        **({"heldout": heldout} if heldout else {}),
    }
    version = client.create_model_version(
        name,
        source=f"{client.get_run(run_id).info.artifact_uri}/policy",
        run_id=run_id,
        tags=tags,
        description=f"Run {summary.get('name')}, iteration {tags['iteration']}: {measured(summary)}.",
    )
    _set_best(client, name)
    return [f"{name} {version.version}"]


def measured(summary: Mapping[str, Any]) -> str:
    """How good the best policy is, as far as the run knows."""
    if "after" not in summary:
        score = summary.get("best", {}).get("score")
        return (
            f"not measured on held-out questions by the run; {'no score' if score is None else f'{score:.3f}'} on the validation questions"
        )
    figure, questions = summary["after"]["overall"][JUDGED_BY], summary["after"]["questions"]
    found = "not measured" if figure["value"] is None else f"{figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]"
    return f"F1-Recall {found} on {questions} held-out questions"


def _set_best(client: Any, name: str) -> None:
    """An upload that was cut short may have left it undone, so it is looked at whenever a policy is met again."""
    versions = {str(version.version): version for version in _versions(client, name)}
    last = versions[str(max(map(int, versions)))]
    same = [version for version in versions.values() if version.tags.get("heldout") == last.tags.get("heldout")]
    by = {tag: [version for version in same if version.tags.get(tag) not in (None, "None")] for tag in (JUDGED_BY, ELSE_BY)}
    tag = JUDGED_BY if by[JUDGED_BY] else ELSE_BY
    best = max(by[tag], key=lambda version: (float(version.tags[tag]), int(version.version)), default=last)
    if client.get_registered_model(name).aliases.get("best") != str(best.version):
        client.set_registered_model_alias(name, "best", best.version)


def _versions(client: Any, name: str) -> list[Any]:
    return list(client.search_model_versions(f"name = '{name}'", max_results=10_000))
