"""`r1-router study` from the outside: killed in the middle, started again, finished."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PATIENCE = 900
"""Seconds that the small study may take on a busy machine; alone on two cores it takes two minutes."""


def command(folder: Path) -> list[str]:
    places = [f"runs_folder={folder}/runs", f"data.kb_folder={folder}/kbs", "tracking.mlflow=false"]
    small = ["study.seeds=[0]", "study.arms=[cold_start,step_grpo,one_step_off]", "study.turns=100"]
    few = ["study.sweep=[group-4]", "evaluation.methods=[policy,all]", "rollout.group_size=4", "train.iterations=30"]
    return [sys.executable, "-m", "experiments.cli", "study", "smoke.yaml", "name=small", *places, *small, *few]


def contents(folder: Path) -> dict[Path, tuple[int, bytes]]:
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
@pytest.mark.timeout(2 * PATIENCE + 60)
def test_a_killed_study_goes_on_and_leaves_alone_what_was_finished(tmp_path: Path):
    study = tmp_path / "runs/small"
    with subprocess.Popen(command(tmp_path), cwd=ROOT, stdout=subprocess.DEVNULL, start_new_session=True) as process:
        end = time.monotonic() + PATIENCE
        while not any(study.glob("one_step_off-seed0/checkpoints/iteration-*/complete.json")):
            assert process.poll() is None, "the study ended too early"
            assert time.monotonic() < end, f"no checkpoint of the second training in {PATIENCE} s"
            time.sleep(0.1)
        os.kill(process.pid, signal.SIGKILL)
    before = contents(study / "step_grpo-seed0") | contents(study / "measured")
    assert any("step_grpo-seed0/" in str(path) and path.name == "policy.jsonl" for path in before)
    done = len((study / "one_step_off-seed0/metrics.jsonl").read_text().splitlines())

    again = subprocess.run(command(tmp_path), cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
    assert again.returncode == 0, again.stdout[-3000:] + again.stderr[-3000:]
    assert "resumed after iteration" in again.stdout
    after = contents(study)
    kept = [path for path in before if path.suffix not in (".yaml", ".lock")]
    assert {path: after[path] for path in kept} == {path: before[path] for path in kept}
    metrics = [json.loads(line) for line in (study / "one_step_off-seed0/metrics.jsonl").read_text().splitlines()]
    assert [row["iteration"] for row in metrics] == list(range(1, len(metrics) + 1))
    assert len(metrics) >= done

    results = json.loads((study / "results.json").read_text())
    assert results["missing"] == []
    for training in results["trainings"].values():
        assert 100 <= training["turns"] <= 100 + 2 * training["turns"] / training["iterations"]
    assert set(results["sweep"]) == {"group-4"}
    assert set(results["metrics"]["step_grpo"]) == {"policy", "all"}
    assert all((study / name).exists() for name in ("tables.md", "learning.svg"))
    assert not list((study / "sweep").glob("*/error*"))
