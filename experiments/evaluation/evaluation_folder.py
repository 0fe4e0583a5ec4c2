"""The folder of an evaluation, written question by question.

settings.yaml         the settings that affect results: policy, data, rollout, knowledge bases
<method>.jsonl        a line for each question: its counts, its answer, its steps
summary.json          every metric with its interval, and paired tests between the methods

The folder name ends in a checksum of settings.yaml: the same evaluation resumes where it stopped, another one gets another folder.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from experiments.config import TrainConfig
from experiments.evaluation.metrics import Counts, averaged, needs_by_step
from experiments.tracking.fingerprints import fingerprint
from retrieval_actors.folder_lock import hold
from rollout.confidence import cited
from rollout.need_matcher import NeedMatcher
from rollout.needs import right_kbs
from rollout.records import Trajectory

STORED_ANSWERS = 5  # Gold answers that a line repeats; a numeric range has thousands
SPEED_ONLY = ("threads", "batch_tokens", "tokens_in_flight", "slots", "partial")
"""Settings of the rollout that change no result where the weights stay."""
NOT_MEASURED = ("kb_folder", "gold", "gold_samples", "faults")  # settings of the data that concern no held-out question
DECISIVE = ("questions", "validation_questions", "temperature", "samples", "min_confidence")  # Settings of the evaluation
FAILURES = ("failed_episodes", "search_errors", "unmeasured_episodes")


def evaluation_folder(config: TrainConfig, policy: str, fingerprints: Mapping[str, str], questions: Iterable[Any]) -> Path:
    """Creates and locks the folder. `fingerprints`: knowledge base -> content hash; `questions`: the held-out ones. Raises FolderHeldError."""
    tree = dataclasses.asdict(config)
    weights = sorted(file for file in Path(policy).glob("*") if file.suffix in (".safetensors", ".json"))
    read = [tree["rollout"]["prompts"], tree["data"]["path"], tree["data"]["heldout_path"]]
    decisive = {  # without the methods and the number of workers
        "files": {path: _size_and_mtime(Path(path)) for path in read if path and Path(path).is_file()},
        "policy": {"path": str(policy), "files": {file.name: _size_and_mtime(file) for file in weights}},
        "data": {key: value for key, value in tree["data"].items() if key not in NOT_MEASURED},
        "rollout": {key: value for key, value in tree["rollout"].items() if key not in SPEED_ONLY},
        "retrieval": {key: tree["retrieval"][key] for key in ("hybrid", "reranker")},
        "dtype": tree["learner"]["dtype"],
        "heldout": fingerprint(questions),
        "evaluation": {key: value for key, value in tree["evaluation"].items() if key in DECISIVE},
        "knowledge_bases": dict(sorted(fingerprints.items())),
    }
    settings = yaml.safe_dump(decisive, allow_unicode=True, sort_keys=False)
    checksum = hashlib.sha256(settings.encode()).hexdigest()[:8]
    path = Path(config.evaluation.folder) / f"{Path(policy).resolve().name}-{config.data.name.replace(':', '.')}-{checksum}"
    hold(path)
    path.mkdir(parents=True, exist_ok=True)
    (path / "settings.yaml").write_text(settings, encoding="utf-8")
    return path


def _size_and_mtime(file: Path) -> list[int]:
    return [file.stat().st_size, file.stat().st_mtime_ns]


class Results:
    """The results of one method by question id; the last line of a question counts. A last line that a kill cut short is removed."""

    def __init__(self, folder: Path, method: str):
        self.path = folder / f"{method.replace(':', '-')}.jsonl"
        self.rows: dict[str, dict[str, Any]] = {}
        if self.path.exists():
            whole, newline, torn = self.path.read_bytes().rpartition(b"\n")
            if torn:
                os.truncate(self.path, len(whole) + len(newline))
            self.rows = {row["id"]: row for row in map(json.loads, whole.splitlines())}

    def add(self, rows: Sequence[dict[str, Any]]) -> None:
        """Append rows; they are on disk when this returns."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
            file.flush()
            os.fsync(file.fileno())
        self.rows |= {row["id"]: row for row in rows}

    def left(self, ids: Iterable[str]) -> list[str]:
        """Questions to ask (again): a failed search says nothing about the policy."""
        return [id for id in ids if id not in self.rows or self.rows[id].get("search_errors")]

    def failures(self, ids: Iterable[str]) -> dict[str, int]:
        rows = [self.rows[id] for id in ids]
        return {name: sum(row.get(name, 0) for row in rows) for name in FAILURES}

    def counts(self, ids: Iterable[str]) -> list[Counts]:
        """Counts of these questions, in this order."""
        return [{name: (top, bottom) for name, (top, bottom) in self.rows[id]["counts"].items()} for id in ids]


def result_row(trajectories: Sequence[Trajectory], counts: Sequence[Counts], matcher: NeedMatcher | None = None) -> dict[str, Any]:
    """The line of one question. Counts are averaged over its episodes; steps are those of the first episode, with the knowledge bases that were
    right to name (`gold`; []: to stop; null: not known). Failures, and the error of the first failed episode, are stored if there are any."""
    first, asked = trajectories[0], trajectories[0].question
    steps = [
        {
            "kb": (step.action.kb or "") if step.action else "",
            "stops": step.action is not None and step.action.kb is None,
            "gold": None if needs is None else right_kbs(needs),
            "query": step.action.query if step.action else "",
            "answer": step.exchange.answer if step.exchange else "",
            "passages": [passage.id for passage in step.passages],
            "cited": [passage.id for passage in cited(step)],
        }
        for step, needs in zip(first.steps, needs_by_step(first, matcher), strict=True)
    ]
    failures = {"error": next((t.error for t in trajectories if t.error), ""), **failures_of(trajectories)}
    return {
        **{"id": asked.id, "family": asked.family, "question": asked.text},
        "answers": list(asked.answers[:STORED_ANSWERS]),
        "answer": first.answer,
        "confidence": first.confidence,
        "steps": steps,
        "counts": {name: list(values) for name, values in averaged(counts).items()},
        **{name: value for name, value in failures.items() if value},
    }


def failures_of(trajectories: Sequence[Trajectory]) -> dict[str, int]:
    """`failed_episodes` ended early and count as wrong; `unmeasured_episodes` had failed searches (`search_errors` of them)."""
    failed = sum(bool(t.error) and not t.search_errors for t in trajectories)
    errors = [t.search_errors for t in trajectories]
    return dict(zip(FAILURES, (failed, sum(errors), sum(map(bool, errors))), strict=True))
