"""The plan against a cluster of several nodes of different shapes: what cannot be placed is said within seconds, by the command itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

REPOSITORY = Path(__file__).parents[2]
SECONDS = 90
"""Bound on a refusal: starting Python, reading the data set and joining the cluster included, on a busy machine."""


@pytest.fixture(scope="module")
def cluster():
    """(address, folder of its sockets): a head, two nodes with GPUs and one for retrieval. The GPUs are those that Ray is told of."""
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False, "object_store_memory": 100 * 2**20})
    nodes.add_node(num_cpus=4, num_gpus=2, resources={"learner": 2}, object_store_memory=80 * 2**20)
    nodes.add_node(num_cpus=2, num_gpus=1, resources={"rollout": 1}, object_store_memory=80 * 2**20)
    nodes.add_node(num_cpus=2, resources={"retrieval": 1, "rewards": 1}, memory=4 * 2**30, object_store_memory=80 * 2**20)
    nodes.wait_for_nodes()
    yield nodes.address
    nodes.shutdown()


def run(command_name: str, address: str, folder: Path, *settings: str) -> tuple[subprocess.CompletedProcess, float]:
    kept = {name: value for name, value in os.environ.items() if name.startswith("RAY_AUTH_") or not name.startswith("RAY_")}
    environment = kept | {"RAY_ADDRESS": address}  # the nodes ask for a token where an earlier test of this process started Ray
    environment["PYTHONPATH"] = str(REPOSITORY)
    command = [
        sys.executable,
        "-m",
        "experiments.cli",
        command_name,
        "smoke.yaml",
        f"runs_folder={folder}",
        f"data.kb_folder={folder / 'kbs'}",
        "tracking.mlflow=false",
    ]
    began = time.monotonic()
    done = subprocess.run([*command, *settings], cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=240, check=False)
    return done, time.monotonic() - began


def words(done: subprocess.CompletedProcess) -> str:
    return " ".join((done.stdout + done.stderr).split())


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            ["learner.num_learners=3", "learner.gpus_per_learner=1", "train.gpus_per_rollout_worker=0.4"],
            "no room for 3 x learner: each requests 1 GPU on nodes with the resource 'learner', 3 GPU with what comes before it; there: 2 GPU",
        ),
        (["retrieval.replicas=9"], "on nodes with the resource 'retrieval'"),
    ],
)
def test_what_has_no_place_ends_the_command_with_the_mend(cluster, tmp_path, settings, said):
    done, seconds = run("train", cluster, tmp_path, *settings)
    assert done.returncode == 2, words(done)[-2000:]
    assert said in words(done)
    assert not (tmp_path / "kbs").exists()  # nothing was built for a run that cannot start
    assert seconds < SECONDS


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_doctor_sees_the_same_and_the_nodes_of_each_role(cluster, tmp_path):
    done, _ = run("doctor", cluster, tmp_path, "learner.num_learners=3", "learner.gpus_per_learner=1", "--json")
    findings = {finding["what"]: finding for finding in json.loads(done.stdout)}
    assert "4 nodes" in findings["cluster"]["found"]
    assert findings["object store"]["status"] == "warn"  # 80 MiB are not the 512 of the configuration
    assert "--object-store-memory=536870912" in findings["object store"]["fix"]
    assert findings["placement"]["status"] == "fail"
    assert "no room for 3 x learner" in findings["placement"]["fix"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_that_has_a_place_runs_on_the_nodes_of_its_roles(cluster, tmp_path):
    done, _ = run("train", cluster, tmp_path, "name=placed", "learner.cpus_per_learner=1", "--verbose")
    assert done.returncode == 0, words(done)[-3000:]
    assert "what the run requests" in done.stdout
    assert json.loads((tmp_path / "placed" / "summary.json").read_text())["iterations"] == 2
