"""What a run requests of Ray, and what is said where there is no room for it."""

from __future__ import annotations

import io

import pytest
import ray
from rich.console import Console

from experiments.cluster.placement import ResourceRequest, missing, on_nodes_of_roles, placed_or_refused, requests_of
from experiments.command_line.progress import Progress
from experiments.config import RunConfigError, load_config

GIB = 2**30
SPLIT = ["learner.num_learners=4", "learner.gpus_per_learner=1", "train.num_rollout_workers=4", "train.gpus_per_rollout_worker=0.6"]


def of_a_run(*settings: str, there: tuple[str, ...] = ()) -> list[ResourceRequest]:
    return requests_of(on_nodes_of_roles(load_config(list(settings)), there), [])


def test_the_gpus_of_all_roles_are_counted_together():
    requests = of_a_run(*SPLIT, "retrieval.gpus_per_embedder=0.1")
    assert sum(request.gpus * request.count for request in requests) == pytest.approx(4 + 4 * 0.6 + 0.1)
    assert missing(requests, [{"CPU": 64, "GPU": 8}]) == ""
    assert "4 x learner" in missing(requests, [{"CPU": 64, "GPU": 6}])


@pytest.mark.parametrize(
    ("settings", "nodes", "role", "wanted"),
    [
        (["learner.num_learners=2", "learner.gpus_per_learner=1"], [{"CPU": 64, "GPU": 1}], "2 x learner", "learner.gpus_per_learner"),
        (["train.num_rollout_workers=9"], [{"CPU": 2}], "9 x rollout", "train.num_rollout_workers"),
        (["learner.resource=big"], [{"CPU": 8}, {"CPU": 8}], "1 x learner", "'big'"),
        (["retrieval.resource=kb"], [{"CPU": 8, "big": 1}], "1 x embedder (minilm)", "'kb'"),
    ],
)
def test_what_has_no_room_is_named_with_role_resource_and_setting_in_one_line(settings, nodes, role, wanted):
    said = missing(of_a_run(*settings), nodes)
    assert f"no room for {role}: " in said
    assert wanted in said
    assert "\n" not in said


def test_a_shard_needs_its_memory_on_one_node():
    shard = ResourceRequest("shard", 1, 0.05, memory=8 * GIB, detail="text, shard 0")
    said = missing([shard], [{"CPU": 8, "memory": 4 * GIB}, {"CPU": 8, "memory": 6 * GIB}])
    assert "shard (text, shard 0): each requests 8.0 GiB" in said
    assert "at most 6.0 GiB on one" in said
    assert missing([shard], [{"CPU": 8, "memory": 8 * GIB}]) == ""


def test_roles_run_on_the_nodes_that_name_them_and_anywhere_where_none_does():
    there = ("learner", "rollout", "retrieval", "rewards")
    assert {request.role: request.resource for request in of_a_run(there=there)} == {
        "embedder": "retrieval",
        "rewards": "rewards",
        "rollout": "rollout",
        "learner": "learner",
    }
    assert {request.resource for request in of_a_run()} == {""}
    nodes = [{"CPU": 8, "GPU": 4, "learner": 1}, {"CPU": 8, "GPU": 2, "rollout": 1}, {"CPU": 8, "retrieval": 1, "rewards": 1}]
    assert "4 x rollout" in missing(of_a_run(*SPLIT, there=there), nodes)
    assert missing(of_a_run(*SPLIT, there=there), [*nodes, nodes[1]]) == ""


def test_colocated_learners_and_workers_run_on_the_same_nodes():
    colocated = ["train.placement=colocated", "learner.gpus_per_learner=0.3", "train.gpus_per_rollout_worker=0.6"]
    pairs = [*colocated, "learner.num_learners=2", "train.num_rollout_workers=2"]
    placed = on_nodes_of_roles(load_config(pairs), ("learner", "rollout"))
    assert (placed.learner.resource, placed.rollout.resource) == ("rollout", "rollout")
    assert missing(of_a_run(*pairs), [{"CPU": 16, "GPU": 2}]) == ""


def test_each_process_is_a_bundle_of_the_placement_group():
    (learner,) = [request for request in of_a_run(*SPLIT, there=("learner",)) if request.role == "learner"]
    assert (learner.count, learner.bundle) == (4, {"CPU": 1.0, "GPU": 1.0, "learner": 0.001})
    assert ResourceRequest("shard", 1, 0.05, memory=GIB).bundle == {"CPU": 0.05, "memory": float(GIB)}


def test_an_evaluation_starts_no_learner():
    config = load_config(["learner.num_learners=9", "learner.gpus_per_learner=1"])
    requests = requests_of(config, [], evaluation="only")
    assert {request.role: request.count for request in requests} == {"embedder": 1, "evaluation": 2}


def test_a_run_is_refused_by_the_cluster_that_has_no_room_and_leaves_no_placement_group(ray_cluster):
    console = Console(file=io.StringIO(), width=200)
    progress = Progress(console, "run", 1, 0, verbose=True)
    there_before = set(ray.util.placement_group_table())
    asked = load_config(["smoke.yaml", "train.num_rollout_workers=1"])
    assert placed_or_refused(asked, None, progress) == asked
    assert "what the run requests" in console.file.getvalue()
    for join_s in (0.0, 1.5):
        large = load_config(["smoke.yaml", "learner.gpus_per_learner=1", f"ray.join_s={join_s}"])
        with pytest.raises(RunConfigError, match=r"no room for 1 x learner: each requests 1 "):
            placed_or_refused(large, None, progress)
        assert ("waiting for room" in console.file.getvalue()) == bool(join_s)
    groups = ray.util.placement_group_table()
    assert all(groups[made]["state"] == "REMOVED" for made in groups.keys() - there_before)
