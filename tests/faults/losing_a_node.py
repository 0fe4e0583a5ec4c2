"""A program of its own, as it starts a Ray of its own: three nodes on this machine, a run on them, and one node killed within it.

python losing_a_node.py FOLDER PHASE   prints what came of it, as JSON.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import ray
from ray._private.state import actors
from ray.cluster_utils import Cluster
from whole_pipeline import pipeline, train_and_lose


def main(folder: Path, phase: str) -> None:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 3, "include_dashboard": False, "object_store_memory": 200 * 2**20})
    others = [cluster.add_node(num_cpus=3, object_store_memory=200 * 2**20) for _ in range(2)]
    ray.init(address=cluster.address, logging_level="error", log_to_driver=False)
    whole = pipeline(folder)
    undisturbed = train_and_lose(whole, folder / "undisturbed")
    table = actors()
    roles = {role: table[handle._actor_id.hex()]["Address"]["NodeID"] for role, handle in whole.actors.by_role().items()}
    victim = max(others, key=lambda node: sum(where == node.node_id for where in roles.values()))
    lost = [role for role, where in roles.items() if where == victim.node_id]
    outcome = train_and_lose(whole, folder / "lost", phase=phase, kill=lambda: cluster.remove_node(victim, allow_graceful=False))
    print(json.dumps({"lost": lost, "undisturbed": dataclasses.asdict(undisturbed), "outcome": dataclasses.asdict(outcome)}))
    whole.actors.close()
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
