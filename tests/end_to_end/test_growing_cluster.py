"""A run that waits for nodes makes an autoscaler start them: Ray's own, whose nodes are processes of this machine here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from own_head import REPOSITORY, free_ports, own_head

CONFIG = {
    "cluster_name": "growing",
    "max_workers": 2,
    "upscaling_speed": 1.0,
    "idle_timeout_minutes": 5,
    "head_node_type": "head",
    "available_node_types": {
        "head": {"resources": {"CPU": 4}, "node_config": {}, "max_workers": 0},
        "gpu": {
            "resources": {"CPU": 2, "GPU": 1, "object_store_memory": 80 * 2**20},
            "node_config": {},
            "min_workers": 0,
            "max_workers": 2,
        },
    },
    "auth": {},
    "docker": {},
    "file_mounts": {},
}
PLAN = """
import sys
import ray
from rich.console import Console
from experiments.config import load_config
from experiments.placement_table import placed_or_refused
ray.init(logging_level="error", log_to_driver=False)
placed_or_refused(load_config(sys.argv[1:]), None, Console(width=160))
"""


@pytest.fixture
def growing_cluster(tmp_path):
    """A head without GPUs, whose autoscaler can start two nodes with one each."""
    (port,) = free_ports(1)
    provider = {"type": "fake_multinode", "gcs_address": f"127.0.0.1:{port}", "head_node_id": "f" * 56}
    file = tmp_path / "cluster.json"
    file.write_text(json.dumps(CONFIG | {"provider": provider}))
    variables = {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
    with own_head("--num-cpus=4", f"--autoscaling-config={file}", port=port, with_dashboard=False, variables=variables) as head:
        yield head


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_nodes_that_a_plan_lacks_are_started_while_the_run_waits(growing_cluster):
    settings = ["learner.num_learners=2", "learner.gpus_per_learner=1", "ray.join_s=200"]
    environment = growing_cluster.environment | {"RAY_ADDRESS": growing_cluster.gcs, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", PLAN, *settings]
    done = subprocess.run(command, env=environment, cwd=Path(REPOSITORY), capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert "waiting for nodes" in done.stdout
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("learner")]
    assert line.split()[1:4] == ["2", "2", "2"]  # processes, CPUs, GPUs
