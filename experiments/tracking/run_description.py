"""What MLflow's pages say of a run beside its metrics: parameters, tags, data sets, and a description to read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from experiments.fingerprints import read_fingerprints
from experiments.measures import MEASURES
from experiments.result_tables import HEADINGS, shown

PARAM_CHARACTERS = 6000
"""That MLflow stores of a parameter; the whole value is in config.yaml."""
KEY_CHARACTERS = 250
IN_THE_DESCRIPTION = ("f1_recall", "exact_match", "routing_accuracy", "stop_accuracy", "retrievals_per_question")


def parameters(folder: Path) -> dict[str, str]:
    """Every setting of config.yaml under its dotted key, sorted, in a form that MLflow takes. Settings of the code at that time: a folder need not
    be readable as a configuration of today."""
    found = flat_yaml(folder / "config.yaml")
    return {allowed(key): cut(str(value)) for key, value in sorted(found.items())}


def flat_yaml(file: Path) -> dict[str, Any]:
    """Dotted key -> value."""

    def walk(prefix: str, value: Any) -> dict[str, Any]:
        if not isinstance(value, dict) or not value:
            return {prefix: value}
        return {
            key: leaf for name, child in value.items() for key, leaf in walk(f"{prefix}.{name}" if prefix else str(name), child).items()
        }

    return walk("", yaml.safe_load(file.read_text(encoding="utf-8")) or {})


def allowed(key: str) -> str:
    """Other characters than these are refused by MLflow."""
    return re.sub(r"[^\w.\- :/]", "_", key)[:KEY_CHARACTERS]


def cut(value: str) -> str:
    return value if len(value) <= PARAM_CHARACTERS else value[: PARAM_CHARACTERS - 1] + "…"


def tags(folder: Path, summary: Mapping[str, Any], key: str) -> dict[str, str]:
    """Whatever a run list is filtered and grouped by."""
    prints = read_fingerprints(folder)
    commit, _, changes = str(summary.get("git_commit") or prints.get("git_commit") or "").partition("+")
    found = {
        "run_key": key,
        "run_folder": str(folder.resolve()),
        "mlflow.source.name": "experiments.train",
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": commit,
        "git_dirty": str(bool(changes)).lower() if commit else "",
        "warnings": ", ".join(dict.fromkeys(warning["name"] for warning in summary.get("warnings", []))),
        "mlflow.note.content": description(folder, summary),
    }
    for split, facts in prints.get("dataset", {}).get("splits", {}).items():
        found[f"dataset.{split}"] = facts["fingerprint"]
    for split, kbs in prints.get("knowledge_bases", {}).items():
        found |= {allowed(f"kb.{split}.{name}"): digest for name, digest in kbs.items()}
    return {name: value for name, value in found.items() if value}


def inputs(folder: Path) -> list[Any]:
    """Data sets and knowledge bases as MLflow's `DatasetInput`s: shown on a run's page with their digests."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    def entry(name: str, digest: str, context: str, source: str) -> DatasetInput:
        return DatasetInput(Dataset(name, digest[:36], "code", source), [InputTag("mlflow.data.context", context)])

    prints = read_fingerprints(folder)
    dataset = prints.get("dataset", {})
    found = [
        entry(f"{dataset['name']}-{split}", facts["fingerprint"], split, f'{{"questions": {facts["questions"]}}}')
        for split, facts in dataset.get("splits", {}).items()
        if facts["questions"]
    ]
    for split, kbs in prints.get("knowledge_bases", {}).items():
        found += [entry(f"kb-{name}", digest, f"knowledge base, {split}", "{}") for name, digest in kbs.items()]
    return found


def description(folder: Path, summary: Mapping[str, Any]) -> str:
    """Markdown for the top of a run's page."""
    settings = flat_yaml(folder / "config.yaml")
    lines = [_headline(summary)] if "after" in summary else []
    lines.append(
        f"**{settings.get('name', folder.name)}**: data `{settings.get('data.name')}`, mode `{settings.get('rollout.mode')}`, "
        f"group size {settings.get('rollout.group_size')}, seed {settings.get('train.seed')}, from `{settings.get('train.policy')}`"
    )
    if summary.get("iterations") is not None:
        lines.append(
            f"{summary['iterations']} iterations, {summary.get('turns', 0):,} turns, {summary.get('sampled_tokens', 0):,} sampled tokens, "
            f"{summary.get('seconds', {}).get('train', 0):,.0f} s of training"
        )
    if "after" in summary:
        lines += ["", f"Held-out questions: {summary['after']['questions']}, ± half a 95 % interval; the difference is paired.", ""]
        lines += ["| measure | before | after | difference |", "|---|---|---|---|"]
        before, after, change = summary["before"]["overall"], summary["after"]["overall"], summary["difference"]
        lines += [
            f"| {HEADINGS[name]} | {shown(before[name])} | {shown(after[name])} | {shown(change[name], signed=True)} |"
            for name in IN_THE_DESCRIPTION
            if name in before and name in after and name in change
        ]
        lines += [
            "",
            "Artifacts: `report.html` (all of it to look at), `plots/`, `tables/`, `trajectories/`, `policy/` (Hugging Face format).",
        ]
    elif summary:
        best = summary.get("best") or {}
        lines.append(
            "Not measured on held-out questions by the run itself: it belongs to a study, was stopped, failed, or is still going on."
        )
        if "score" in best:
            lines.append(f"Best policy so far: iteration {best['iteration']}, {best['score']:.3f} on the validation questions.")
    return "\n".join(line if line.startswith("|") or not line else line + "  " for line in lines)


def _headline(summary: Mapping[str, Any]) -> str:
    before, after, change = summary["before"]["overall"], summary["after"]["overall"], summary["difference"]
    return f"F1-Recall {shown(before['f1_recall'])} → {shown(after['f1_recall'])} (paired {shown(change['f1_recall'], signed=True)})"


def measures_table(summary: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Columns and rows in the form of MLflow's logged tables: every measure of every method, with its interval."""
    methods = {"before": summary.get("before"), "after": summary.get("after")}
    methods |= {f"after, {name}": found for name, found in (summary.get("baselines") or {}).items()}
    methods |= {f"before, {name}": found for name, found in (summary.get("start_baselines") or {}).items()}
    methods["after - before, paired"] = {"overall": summary.get("difference", {})}
    rows = [
        [method, measure, figure.get("value"), figure.get("low"), figure.get("high"), MEASURES.get(measure, "")]
        for method, found in methods.items()
        if found
        for measure, figure in found.get("overall", {}).items()
    ]
    return {"columns": ["policy", "measure", "value", "low_95", "high_95", "what it is"], "data": rows}
