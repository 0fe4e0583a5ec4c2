"""A comparison as a run of its own in MLflow, beside the runs that it compares. The same comparison, made again, is the same run."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.comparison.found import Comparison
from experiments.config import TrackingConfig
from experiments.measures import MEASURES
from experiments.result_tables import HEADINGS, shown
from experiments.tracking.run_description import allowed
from experiments.tracking.store import bound_waiting, connect, experiment_id

TAG = "comparison"


def record(found: Comparison, files: Sequence[Path], tracking: TrackingConfig) -> str:
    """Id of the run: tagged with the ids of the compared runs, holding `files`. Raises what MLflow raises."""
    from mlflow.entities import Metric, RunTag

    bound_waiting()
    client = connect(tracking)
    experiment = experiment_id(client, tracking)
    ids = [run.run_id or run.name for run in found.runs]
    key = hashlib.sha256(" ".join(ids).encode()).hexdigest()[:16]
    earlier = client.search_runs([experiment], filter_string=f"tags.{TAG} = '{key}'", max_results=1)
    name = "compare: " + ", ".join(run.name for run in found.runs)
    run_id = earlier[0].info.run_id if earlier else client.create_run(experiment, run_name=name[:250], tags={TAG: key}).info.run_id
    tags = {
        "compared_runs": ", ".join(run.run_id for run in found.runs if run.run_id),
        "compared_names": ", ".join(run.name for run in found.runs),
        "caveats": str(len(found.caveats)),
        "mlflow.source.name": "experiments.compare",
        "mlflow.note.content": _note(found),
    }
    logged = earlier[0].data.metrics if earlier else {}
    values = {
        f"difference_{allowed(d.run.name).replace('/', '-')}/{name}": figure["value"]
        for d in found.differences
        for name, figure in d.figures.items()
    }
    new = [Metric(name, value, 0, 0) for name, value in values.items() if logged.get(name) != value]
    client.log_batch(run_id, metrics=new, tags=[RunTag(key, value) for key, value in tags.items()])
    for file in files:
        client.log_artifact(run_id, str(file))
    client.set_terminated(run_id, "FINISHED")
    return run_id


def _note(found: Comparison) -> str:
    lines = [f"`{found.runs[0].name}` against {', '.join(f'`{run.name}`' for run in found.runs[1:])}; see `comparison.html`.", ""]
    lines += [f"- {line}" for line in found.caveats]
    paired: list[Any] = [difference for difference in found.differences if difference.figures]
    if paired:
        lines += ["", f"Minus `{found.runs[0].name}`, paired:", "", "| measure | " + " | ".join(d.run.name for d in paired) + " |"]
        lines += ["|---" * (len(paired) + 1) + "|"]
        lines += [
            f"| {HEADINGS[name]} | " + " | ".join(shown(d.figures.get(name, {}), signed=True) for d in paired) + " |"
            for name in MEASURES
            if any(name in d.figures for d in paired)
        ]
    return "\n".join(lines)
