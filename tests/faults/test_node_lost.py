"""A cluster of three nodes trains, loses one and finishes with the same account."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from whole_pipeline import ITERATIONS

HERE = Path(__file__).parent


@pytest.mark.slow
@pytest.mark.timeout(660)
@pytest.mark.parametrize("phase", ["rollout", "learn"])
def test_a_node_is_lost_and_the_run_finishes_with_the_same_account(tmp_path, phase):
    paths = os.pathsep.join([str(HERE.parents[1]), *sys.path])  # what lies beside tests, too
    done = subprocess.run(
        [sys.executable, str(HERE / "losing_a_node.py"), str(tmp_path), phase],
        capture_output=True,
        text=True,
        timeout=600,
        env=os.environ | {"PYTHONPATH": paths},
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    outcome, undisturbed = found["outcome"], found["undisturbed"]
    assert found["lost"], "nothing ran on that node"
    assert [row["iteration"] for row in outcome["rows"]] == list(range(1, ITERATIONS + 1))
    for row, expected in zip(outcome["rows"], undisturbed["rows"], strict=True):
        account = [row[f"{what}_questions"] for what in ("asked", "returned", "requeued", "failed")]
        assert account == [expected[f"{what}_questions"] for what in ("asked", "returned", "requeued", "failed")]
    assert outcome["learned"] == undisturbed["learned"]
    assert outcome["checksum"] == undisturbed["checksum"]
    node = next(failure for failure in outcome["failures"] if failure["role"] == "node")
    assert all(role in node["reason"] for role in found["lost"] if not role.startswith("learner"))
    assert node["iteration"] == 2
