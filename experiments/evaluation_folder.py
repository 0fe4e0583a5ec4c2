"""The folder of an evaluation: what was measured, question by question, as it goes.

settings.yaml         what decides the figures: policy, data, rollout, knowledge bases
<method>.jsonl        a line for each question: its counts, its answer, its steps
summary.json          every measure with its interval, and paired tests between the methods

Its name ends in a checksum of the settings: the same evaluation goes on where it was stopped, another one gets another folder.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from experiments.config import TrainConfig
from experiments.fingerprints import fingerprint
from experiments.measures import Counts, averaged
from rollout.records import Trajectory

SHOWN_ANSWERS = 5
"""Gold answers that a line repeats; a numeric range has thousands."""

EACH_ONCE = "retrievals_per_question"
"""A measure whose denominator is 1 for every episode."""


class EvaluationFolder:
    def __init__(self, config: TrainConfig, policy: str, fingerprints: Mapping[str, str], questions: Iterable[Any], earlier: str = ""):
        """`fingerprints`: knowledge base -> hash of its content; `questions`: those that are asked. `earlier`: a folder of an earlier version of
        the code that is gone on with, if all that it says of its settings is so now."""
        settings = settings_of(config, policy, fingerprints, questions)
        written = yaml.safe_dump(settings, allow_unicode=True, sort_keys=False)
        checksum = hashlib.sha256(written.encode()).hexdigest()[:8]
        place = Path(config.evaluation.folder)
        self.path = place / f"{Path(policy).resolve().name}-{config.data.name.replace(':', '.')}-{checksum}"
        if not self.path.exists() and earlier and agrees(read_settings_of(place / earlier), settings):
            self.path = place / earlier
            return
        self.path.mkdir(parents=True, exist_ok=True)
        (self.path / "settings.yaml").write_text(written, encoding="utf-8")

    def results(self, method: str) -> Results:
        return Results(self.path / f"{method.replace(':', '-')}.jsonl")

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        aside = self.path / "summary.json.partial"
        aside.write_text(json.dumps(without_nan(summary), indent=1, ensure_ascii=False, allow_nan=False), encoding="utf-8")
        aside.replace(self.path / "summary.json")


class Results:
    """What one method did, by question; of a question that was asked again the last line counts. A line that was cut short when the process was
    killed is dropped, and its question asked again."""

    def __init__(self, path: Path):
        self.path = path
        self.rows: dict[str, dict[str, Any]] = {}
        if path.exists():
            whole, newline, torn = path.read_bytes().rpartition(b"\n")
            if torn:
                os.truncate(path, len(whole) + len(newline))
            for line in whole.splitlines():
                row = json.loads(line)
                self.rows[row["id"]] = row

    def add(self, rows: Iterable[dict[str, Any]]) -> None:
        """On disk when this returns."""
        found = list(rows)
        with self.path.open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found))
            file.flush()
            os.fsync(file.fileno())
        self.rows |= {row["id"]: row for row in found}

    def left(self, ids: Iterable[str]) -> list[str]:
        """Those that have to be asked (again): a failed search says nothing about the policy."""
        return [id for id in ids if id not in self.rows or self.rows[id].get("search_errors")]

    def went_wrong(self, ids: Iterable[str]) -> dict[str, int]:
        """`failed_episodes` (and turns that were left out), and `search_errors`, in all."""
        rows = [self.rows[id] for id in ids]
        return {
            "failed_episodes": sum(row.get("failed", 1 if row.get("error") else 0) for row in rows),
            "search_errors": sum(row.get("search_errors", 0) for row in rows),
        }

    def counts(self, ids: Iterable[str]) -> list[Counts]:
        """Of these questions, in this order. Lines that an earlier version wrote hold sums over episodes: they become means."""
        counts = [self.rows[id]["counts"] for id in ids]
        episodes = [max(1.0, found.get(EACH_ONCE, (0.0, 1.0))[1]) for found in counts]
        return [{name: (top / n, bottom / n) for name, (top, bottom) in found.items()} for found, n in zip(counts, episodes, strict=True)]


def without_nan(tree: Any) -> Any:
    """None in the place of what is no number, which JSON does not know."""
    if isinstance(tree, Mapping):
        return {key: without_nan(value) for key, value in tree.items()}
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree


def row_of(trajectories: Sequence[Trajectory], counts: Sequence[Counts]) -> dict[str, Any]:
    """The line of one question; of several episodes the counts are averaged, and the first is written out."""
    first = trajectories[0]
    return {
        "id": first.question.id,
        "family": first.question.family,
        "question": first.question.text,
        "answers": list(first.question.answers[:SHOWN_ANSWERS]),
        "answer": first.answer,
        "steps": [
            {
                "kb": step.exchange.kb,
                "query": step.exchange.query,
                "answer": step.exchange.answer,
                "passages": [p.id for p in step.passages],
            }
            for step in first.steps
            if step.exchange
        ],
        "counts": {name: list(values) for name, values in averaged(counts).items()},
    } | went_wrong(trajectories)


def went_wrong(trajectories: Sequence[Trajectory]) -> dict[str, Any]:
    """Of the episodes of one question, `failed`: how many were broken off, `error`: why the first of them was, `search_errors`; each where there
    is something to say."""
    errors = [trajectory.error for trajectory in trajectories if trajectory.error]
    found = {"error": errors[0] if errors else "", "failed": len(errors), "search_errors": sum(t.search_errors for t in trajectories)}
    return {name: value for name, value in found.items() if value}


def left_out(id: str) -> dict[str, Any]:
    """The line of a recorded turn whose prompt is too long."""
    return {"id": id, "family": "", "error": "left out: its prompt is longer than rollout.max_prompt_tokens", "counts": {}}


def read_settings_of(folder: Path) -> Any:
    """What its settings.yaml says; None without one."""
    file = folder / "settings.yaml"
    return yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else None


def agrees(said: Any, now: Any) -> bool:
    """Whether `now` has whatever was said, and as it was said; it may say more."""
    if isinstance(said, Mapping) and isinstance(now, Mapping):
        return all(key in now and agrees(value, now[key]) for key, value in said.items())
    return said is not None and said == now


def settings_of(config: TrainConfig, policy: str, fingerprints: Mapping[str, str], questions: Iterable[Any]) -> dict[str, Any]:
    """All that a figure depends on; not which methods are measured, nor how many workers do it."""
    tree = dataclasses.asdict(config)
    evaluation = {key: tree["evaluation"][key] for key in ("questions", "validation_questions", "temperature", "samples")}
    files = sorted(file for file in Path(policy).glob("*") if file.suffix in (".safetensors", ".json")) if Path(policy).is_dir() else []
    read = [tree["rollout"]["prompts"], tree["data"]["path"], tree["data"].get("heldout_path"), tree["prompts"]["from_dataset"]]
    stamps = {path: [Path(path).stat().st_size, Path(path).stat().st_mtime_ns] for path in read if path and Path(path).is_file()}
    return {
        "files": stamps,
        "policy": {"path": str(policy), "files": {file.name: [file.stat().st_size, file.stat().st_mtime_ns] for file in files}},
        "data": {key: value for key, value in tree["data"].items() if key != "kb_folder"},
        "rollout": {
            key: value
            for key, value in tree["rollout"].items()
            if key not in ("threads", "batch_tokens", "tokens_in_flight", "slots", "compile_decode")
        },
        "retrieval": {key: tree["retrieval"][key] for key in ("hybrid", "reranker", "rerank_candidates")},
        "dtype": tree["learner"]["dtype"],
        "heldout": fingerprint(questions),
        "evaluation": evaluation,
        "knowledge_bases": dict(sorted(fingerprints.items())),
    }
