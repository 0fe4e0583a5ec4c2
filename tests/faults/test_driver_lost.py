"""The driver is killed in a phase: the same command with `train.resume=auto` goes on, learns what it would have learned, and says what was lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
PATIENCE_S = 280
SETTINGS = (
    "smoke.yaml",
    "train.iterations=3",
    "train.evaluate_every=0",
    "tracking.mlflow=false",
    "evaluation.questions=2",
    "evaluation.baselines=[]",
)


def run(folder: Path, name: str, *program: str, more: tuple[str, ...] = ()) -> subprocess.CompletedProcess:
    paths = os.pathsep.join([str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")])
    places = (f"runs_folder={folder}/runs", f"data.kb_folder={folder}/kbs", f"name={name}")
    return subprocess.run(
        [sys.executable, *program, *SETTINGS, *places, *more],
        cwd=HERE.parents[1],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        env=os.environ | {"PYTHONPATH": paths},
    )


def figures(folder: Path, name: str) -> list[tuple]:
    rows = [json.loads(line) for line in (folder / "runs" / name / "metrics.jsonl").read_text().splitlines()]
    return [(row["iteration"], row["policy_version"], row["reward"], row["loss"], row["grad_norm"], row["asked_questions"]) for row in rows]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """With an undisturbed run in it."""
    found = tmp_path_factory.mktemp("drivers")
    undisturbed = run(found, "undisturbed", "-m", "experiments.train")
    assert undisturbed.returncode == 0, undisturbed.stdout[-3000:]
    return found


@pytest.mark.slow
@pytest.mark.timeout(3 * PATIENCE_S)
@pytest.mark.parametrize("phase", ["push", "rollout", "score", "learn", "checkpoint"])
def test_the_next_driver_goes_on_and_tells_of_the_last(folder, phase):
    name = phase
    killed = run(folder, name, str(HERE / "losing_the_driver.py"), phase, "2")
    assert killed.returncode == -signal.SIGKILL, killed.stdout[-3000:]
    resumed = run(folder, name, "-m", "experiments.train", more=("train.resume=auto",))
    assert resumed.returncode == 0, resumed.stdout[-3000:]
    assert f"failure: driver ({phase}, process " in resumed.stdout
    assert "resumed after iteration 1 from" in resumed.stdout
    assert figures(folder, name) == figures(folder, "undisturbed")
    failure = json.loads((folder / "runs" / name / "failures/001.json").read_text())
    assert (failure["role"], failure["phase"], failure["iteration"]) == ("driver", phase, 2)
