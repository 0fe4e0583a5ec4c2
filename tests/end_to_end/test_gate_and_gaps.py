"""`r1-router gate` and `r1-router gaps` on a run folder, as a user types them; and a training with faults."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.config import TrainConfig, find_policy, load_config
from experiments.evaluation.evaluation_folder import Results
from experiments.tracking.gate_file import CARD, gate_of, gate_warning
from experiments.tracking.run_folder import RunFolder
from rollout.faults import FAULTS

pytestmark = pytest.mark.slow
SMALL = [
    *("data.worlds=1", "data.countries=6", "evaluation.questions=16", "train.num_rollout_workers=1", "tracking.mlflow=false"),
    "data.faults={empty: 0.3, stale: 0.2}",
]


def command(folder: Path, *arguments: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "experiments.cli", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=600,
    )
    return done.returncode, done.stdout + done.stderr


def test_the_gate_and_the_gaps_of_a_run_are_stored_with_it(tmp_path):
    run = RunFolder.start(load_config([f"runs_folder={tmp_path}/runs", "name=mine", f"evaluation.folder={tmp_path}/evaluations", *SMALL]))
    shutil.copytree(find_policy(TrainConfig().train.policy), run.policy)
    code, said = command(tmp_path, "gate", "runs/mine", f"data.kb_folder={tmp_path}/kbs")
    found = gate_of(run.policy)
    failed = [kind for kind, row in found["faults"].items() if not row["passed"]]
    assert list(found["faults"]) == list(FAULTS), said
    assert code == (1 if failed else 0)
    assert all(kind in gate_warning(run.policy) for kind in failed)
    assert (run.policy / CARD).read_text().count("| empty | no passage |") == 1
    assert "With broken knowledge bases" in run.report.read_text()
    (evaluated,) = (tmp_path / "evaluations").iterdir()
    healthy, empty = (Results(evaluated, name).rows for name in ("policy", "gate-empty"))
    assert healthy.keys() == empty.keys()
    assert not any(step["passages"] for row in empty.values() for step in row["steps"])
    assert any(step["passages"] for row in healthy.values() for step in row["steps"])
    again, _ = command(tmp_path, "gate", "runs/mine", f"data.kb_folder={tmp_path}/kbs")  # nothing is asked again
    assert again == code
    assert (run.policy / CARD).read_text().count("| empty | no passage |") == 1

    code, said = command(tmp_path, "gaps", "runs/mine", f"data.kb_folder={tmp_path}/kbs")
    assert code == 0, said
    gaps = json.loads((run.path / "gaps.json").read_text())
    lacking = sum(cluster["size"] for cluster in gaps["clusters"])
    assert gaps["ceiling"]["value"] == pytest.approx(1 - lacking / gaps["questions"])
    assert "What the knowledge bases lack" in run.report.read_text()


def test_a_training_asks_questions_whose_knowledge_bases_are_broken(tmp_path):
    code, said = command(tmp_path, "train", "smoke.yaml", *SMALL, "data.faults.empty=1")
    assert code == 2, said  # more than all questions
    code, said = command(tmp_path, "train", "smoke.yaml", *SMALL, "train.iterations=1", "data.faults.stale=0", "data.faults.empty=1")
    assert code == 0, said
    run = RunFolder.open(tmp_path / "runs/smoke")
    assert "ceiling" in run.summary()
    asked = run.read_trajectories("iteration-000001")
    assert {tuple(row["answers"]) for row in asked if row["gold"]} == {("unknown",)}
    assert not any(step["passages"] for row in asked if row["gold"] for step in row["steps"])
    assert any(step["passages"] for row in run.read_trajectories("after") for step in row["steps"])
