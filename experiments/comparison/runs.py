"""The runs that are compared: what their folders say, in a form that does not care which version of the code wrote them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from experiments.fingerprints import read_fingerprints
from experiments.measures import Counts
from experiments.run_folder import RunFolder
from experiments.tracking.identity import identity
from experiments.tracking.run_description import flat_yaml

STATES = {"FINISHED": "finished", "KILLED": "stopped", "FAILED": "failed"}


@dataclass(frozen=True)
class Measured:
    """One held-out question of one run."""

    text: str
    answers: tuple[str, ...]
    counts: Counts
    error: str = ""
    """Why the episode failed, if it did; its counts are those of no answer."""


@dataclass(frozen=True)
class ComparedRun:
    name: str
    """As it is called in tables: different for every run of a comparison."""
    folder: RunFolder
    settings: Mapping[str, Any] = field(repr=False)
    """Dotted key -> value, as config.yaml has them: settings of the code at that time."""

    @classmethod
    def of(cls, folder: RunFolder, name: str = "") -> ComparedRun:
        return cls(name or folder.path.name, folder, flat_yaml(folder.path / "config.yaml"))

    @cached_property
    def summary(self) -> dict[str, Any]:
        return self.folder.summary()

    @cached_property
    def metrics(self) -> list[dict[str, Any]]:
        return self.folder.metrics()

    @cached_property
    def fingerprints(self) -> dict[str, Any]:
        return read_fingerprints(self.folder.path)

    @cached_property
    def identity(self) -> dict[str, Any]:
        return identity(self.folder.path)

    @property
    def run_id(self) -> str:
        """In MLflow; empty where it was never there."""
        return self.identity.get("run_id", "")

    @cached_property
    def state(self) -> str:
        """`finished`, `stopped`, `failed`, or `unfinished`: killed, or still at work."""
        if outcome := self.identity.get("outcome"):
            return STATES[outcome]
        return "finished" if "after" in self.summary else "unfinished"

    @property
    def iterations(self) -> int:
        return int(self.summary.get("iterations") or len(self.metrics))

    @cached_property
    def after(self) -> dict[str, Any]:
        """Measure -> figure of the best policy on the held-out questions; empty where it was not measured."""
        return self.summary.get("after", {}).get("overall", {})

    @property
    def validated(self) -> str:
        """Score of the best policy on the validation questions, and its iteration: all that a run without final figures knows of it."""
        best = self.summary.get("best") or {}
        return f"{best['score']:.3f} (iteration {best['iteration']})" if "score" in best else "–"

    @cached_property
    def questions(self) -> dict[str, Measured]:
        """Question id -> what was measured after training. Empty where it was not, or was not kept question by question."""
        file = self.folder.trajectories / "after.parquet"
        if "after" not in self.summary or not file.exists():  # a resumed run has trajectories of an earlier end, for a while
            return {}
        known = set(pq.read_schema(file).names)
        rows = pq.read_table(file, columns=[c for c in ("question_id", "text", "answers", "counts", "error") if c in known]).to_pylist()
        return {row["question_id"]: _measured(row) for row in rows if row.get("counts")}


def _measured(row: Mapping[str, Any]) -> Measured:
    counts = {name: (float(top), float(bottom)) for name, (top, bottom) in json.loads(row["counts"]).items()}
    return Measured(row["text"], tuple(row["answers"]), counts, row.get("error") or "")


def named(folders: Sequence[Path]) -> list[ComparedRun]:
    """Each folder once, under its name; folders of the same name under as much of their path as tells them apart."""
    places = list(dict.fromkeys(folder.resolve() for folder in folders))
    opened = [RunFolder.open(next(folder for folder in folders if folder.resolve() == place)) for place in places]
    names = [place.name for place in places]
    for depth in range(2, max((len(place.parts) for place in places), default=0) + 1):
        if len(set(names)) == len(names):
            break
        again = {name for name in names if names.count(name) > 1}
        names = ["/".join(place.parts[-depth:]) if name in again else name for place, name in zip(places, names, strict=True)]
    return [ComparedRun.of(folder, name) for folder, name in zip(opened, names, strict=True)]
