"""The best policy of a run in MLflow's model registry: a version of `MODEL-DATASET`, with the alias `best`.

folder = mlflow.artifacts.download_artifacts("models:/r1-router-atlas@best")     # Hugging Face format; the newest: r1-router-atlas/latest
Policy.load(folder)     # or AutoModelForImageTextToText.from_pretrained(folder)
"""

from __future__ import annotations

import hashlib
import re
from typing import Any

from experiments.config import TrackingConfig
from experiments.fingerprints import read_fingerprints
from experiments.run_folder import RunFolder
from experiments.tracking.artifacts import file_digest
from experiments.tracking.run_description import flat_yaml

JUDGED_BY = "f1_recall"
"""`best` has the highest one among the versions that were measured on the same held-out questions as the newest."""


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
    after = summary["after"]
    heldout = read_fingerprints(folder.path).get("dataset", {}).get("splits", {}).get("heldout", {}).get("fingerprint", "")
    tags = {
        JUDGED_BY: str(after["overall"][JUDGED_BY]["value"]),
        "iteration": str(summary.get("best", {}).get("iteration", summary.get("iterations"))),
        "policy": digest,
        **({"heldout": heldout} if heldout else {}),
    }
    figure = after["overall"][JUDGED_BY]
    measured = "not measured" if figure["value"] is None else f"{figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]"
    version = client.create_model_version(
        name,
        source=f"{client.get_run(run_id).info.artifact_uri}/policy",
        run_id=run_id,
        tags=tags,
        description=f"Run {summary.get('name')}, iteration {tags['iteration']}: F1-Recall {measured} on {after['questions']} held-out questions.",
    )
    _set_best(client, name)
    return [f"{name} {version.version}"]


def _set_best(client: Any, name: str) -> None:
    """An upload that was cut short may have left it undone, so it is looked at whenever a policy is met again."""
    versions = {str(version.version): version for version in _versions(client, name)}
    last = versions[str(max(map(int, versions)))]
    same = [version for version in versions.values() if version.tags.get("heldout") == last.tags.get("heldout")]
    scored = [version for version in same if version.tags.get(JUDGED_BY) not in (None, "None")]
    best = max(scored, key=lambda version: (float(version.tags[JUDGED_BY]), int(version.version)), default=last)
    if client.get_registered_model(name).aliases.get("best") != str(best.version):
        client.set_registered_model_alias(name, "best", best.version)


def _versions(client: Any, name: str) -> list[Any]:
    return list(client.search_model_versions(f"name = '{name}'", max_results=10_000))
