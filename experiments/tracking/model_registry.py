"""MLflow's model registry: the best policy of a run is a version of the model `MODEL-DATASET`; the alias `best` names the best version.

folder = mlflow.artifacts.download_artifacts("models:/r1-router-atlas@best")     # Hugging Face format; the newest: r1-router-atlas/latest
load_policy(folder)     # or the library's AutoModelForCausalLM, AutoModelForImageTextToText
"""

import hashlib
import re
from typing import Any

from experiments.config import TrackingConfig
from experiments.tracking.fingerprints import read_fingerprints
from experiments.tracking.gate_file import CARD, GATE
from experiments.tracking.run_folder import RunFolder, file_checksum, flat_yaml

MEASURED, VALIDATED = "f1_recall", "validation"
"""Tags of a version. `best` has the highest held-out F1-Recall of the versions with the same held-out questions as the newest; if none of them
was measured (trainings of a study), the highest score on the validation questions."""


def model_name(tracking: TrackingConfig, dataset: str) -> str:
    """One model for each data set, since versions are compared with each other."""
    return re.sub(r"[^\w\-]+", "-", f"{tracking.model}-{dataset}")


def register_policy(client: Any, run_id: str, folder: RunFolder, tracking: TrackingConfig) -> list[str]:
    """Register the policy among the run's artifacts, unless a version with the same files exists. Returns at most one `name version`."""
    summary, dataset = folder.summary(), str(flat_yaml(folder.path / "config.yaml").get("data.name"))
    name, made = model_name(tracking, dataset), []
    files = [
        f"{file.name} {file_checksum(file)}\n"
        for file in sorted(folder.policy.glob("*"))
        if file.is_file() and file.name not in (GATE, CARD)
    ]
    digest = hashlib.sha256("".join(files).encode()).hexdigest()[:16]
    if not any(version.run_id == run_id and version.tags.get("policy") == digest for version in _versions(client, name)):
        if not client.search_registered_models(filter_string=f"name = '{name}'"):
            what = f"Policies that decide when and where to retrieve, trained on `{dataset}`; Hugging Face format."
            client.create_registered_model(name, description=what)
        best = summary.get("best", {})
        iteration = best.get("iteration", summary.get("iterations"))
        tags = {
            MEASURED: summary["after"]["overall"][MEASURED]["value"] if "after" in summary else None,
            VALIDATED: best.get("score"),
            "iteration": iteration,
            "policy": digest,
            "heldout": read_fingerprints(folder.path).get("dataset", {}).get("splits", {}).get("heldout", {}).get("fingerprint"),
        }
        source = f"{client.get_run(run_id).info.artifact_uri}/policy"
        known = {tag: str(value) for tag, value in tags.items() if value is not None}
        what = f"Run {summary.get('name')}, iteration {iteration}."
        version = client.create_model_version(name, source=source, run_id=run_id, tags=known, description=what)
        made.append(f"{name} {version.version}")
    _set_best(client, name)  # of a known policy as well, as an interrupted upload may not have set the alias
    return made


def _set_best(client: Any, name: str) -> None:
    versions = sorted(_versions(client, name), key=lambda version: int(version.version))
    newest = versions[-1]
    same = [version for version in versions if version.tags.get("heldout") == newest.tags.get("heldout")]
    tag = MEASURED if any(MEASURED in version.tags for version in same) else VALIDATED
    scored = [version for version in same if tag in version.tags]
    best = max(scored, key=lambda version: (float(version.tags[tag]), int(version.version)), default=newest)
    if client.get_registered_model(name).aliases.get("best") != str(best.version):
        client.set_registered_model_alias(name, "best", best.version)


def _versions(client: Any, name: str) -> list[Any]:
    return list(client.search_model_versions(f"name = '{name}'", max_results=10_000))
