"""All that a comparison of runs comes to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from experiments.comparison.caveats import caveats
from experiments.comparison.differences import Difference, differences, differing_settings, unknown_in_some
from experiments.comparison.runs import ComparedRun


@dataclass(frozen=True)
class Comparison:
    runs: Sequence[ComparedRun]
    """The first one is what the others are compared with."""
    caveats: list[str]
    """What cannot be compared, and why: a line each."""
    differences: list[Difference]
    """Of each run but the first."""
    settings: dict[str, list[Any]]
    """Dotted key -> value in each run, of what they were told differently."""
    only_some_know: list[str]
    """At most one line: settings that the code of some of the runs did not have."""


def compare_runs(runs: Sequence[ComparedRun]) -> Comparison:
    differing = differing_settings(runs)
    unknown = unknown_in_some(runs, differing)
    only_some = [f"settings that the code of only some of them knew: {', '.join(unknown)}"] if unknown else []
    told = {key: values for key, values in differing.items() if key not in unknown}
    return Comparison(runs, caveats(runs), differences(runs), told, only_some)


def as_json(found: Comparison) -> dict[str, Any]:
    """For `comparison.json`."""
    return {
        "runs": [
            {
                "name": run.name,
                "run_id": run.run_id,
                "state": run.state,
                "iterations": run.iterations,
                "best": run.summary.get("best"),
                "after": run.after,
            }
            for run in found.runs
        ],
        "caveats": found.caveats,
        "differences": [
            {"run": d.run.name, "minus": found.runs[0].name, "questions": d.questions, "figures": d.figures} for d in found.differences
        ],
        "settings": found.settings,
    }
