"""Who runs where: on paper, before Ray is asked."""

from __future__ import annotations

import json
import re

import pytest
import ray
from hypothesis import given
from hypothesis import settings as within
from hypothesis import strategies as st
from ray.experimental.internal_kv import _initialize_internal_kv

from experiments.config import load_config
from experiments.growth import bundles_of, growing
from experiments.placement import Ask, Node, place
from experiments.run_asks import RoleResources, asks_of, asks_of_evaluation

GIB = 2**30
COLOCATED = [
    "train.placement=colocated",
    "learner.num_learners=2",
    "train.num_rollout_workers=2",
    "train.gpus_per_rollout_worker=0.6",
    "learner.gpus_per_learner=0.3",
    "train.gpus_per_evaluation_worker=0.1",
]


def of_a_run(*settings: str, there: tuple[str, ...] = ()) -> list[Ask]:
    config = load_config(list(settings))
    return asks_of(config, RoleResources.of(config, there), [])


def test_learners_get_gpus_of_their_own_and_workers_share_the_others():
    plan = place(
        of_a_run(
            "learner.num_learners=4",
            "learner.gpus_per_learner=1",
            "train.num_rollout_workers=4",
            "train.gpus_per_rollout_worker=0.6",
            "train.gpus_per_evaluation_worker=0.2",
            "retrieval.gpus_per_embedder=0.1",
        ),
        [Node("a", 64, 8)],
    )
    assert not plan.refusal
    assert sum(ask.gpus * n for ask, n in plan.on("a")) == pytest.approx(4 + 4 * 0.8 + 0.1)


def test_small_shares_that_fill_a_gpu_can_leave_no_room_for_a_large_one():
    # What Ray does: three embedders of .4 lie on two GPUs before the rollout workers come.
    asks = [Ask("embedder", 3, 0.1, 0.4, setting="retrieval.gpus_per_embedder"), Ask("rollout", 1, 0.5, 0.7, setting="train.gpus")]
    assert "1 of 1 rollout find no place" in place(asks, [Node("a", 8, 2)]).refusal


@pytest.mark.parametrize(
    ("settings", "nodes", "said"),
    [
        (
            ["learner.num_learners=2", "learner.gpus_per_learner=1"],
            [Node("a", 64, 1)],
            r"1 of 2 learner find no place: one asks for 1 CPU, 1 GPU; left on 1 node, none with enough of a GPU: a: .* Mend: lower "
            r"learner\.num_learners or learner\.gpus_per_learner, or add nodes \(ray\.join_s=600",
        ),
        (["train.num_rollout_workers=9"], [Node("a", 2)], r"of 9 rollout find no place: one asks for 0\.5 CPU; .*none with enough CPUs"),
        (["learner.resource=learner"], [Node("a", 8), Node("b", 8)], r"no node has the resource 'learner' \(found none\)"),
        (
            ["retrieval.resource=kb"],
            [Node("a", 8, resources=frozenset({"big"}))],
            r"1 of 1 embedder \(minilm\) find no place: .*no node has the resource 'kb' \(found big\)",
        ),
    ],
)
def test_what_finds_no_place_is_named_with_what_is_there_and_the_mend(settings, nodes, said):
    refusal = place(of_a_run(*settings), nodes).refusal
    assert re.search(said, refusal), refusal
    assert "\n" not in refusal


def test_a_shard_that_no_node_has_memory_for_is_refused():
    asks = [Ask("shard", 1, 0.05, memory=8 * GIB, setting="retrieval.replicas", detail="text, shard 0")]
    refusal = place(asks, [Node("a", 8, memory=4 * GIB), Node("b", 8, memory=6 * GIB)]).refusal
    assert "shard (text, shard 0) find no place: one asks for 0.05 CPU, 8.0 GiB; left on 2 nodes, none with enough memory" in refusal


def test_replicas_of_a_shard_go_to_different_nodes_and_shards_to_the_node_with_most_memory_left():
    asks = [Ask("shard", 2, 0.05, memory=3 * GIB, detail=f"shard {i}") for i in range(2)]
    plan = place(asks, [Node("a", 8, memory=10 * GIB), Node("b", 8, memory=7 * GIB)])
    assert [dict(placed.nodes) for placed in plan.placed] == [{"a": 1, "b": 1}] * 2


def test_learners_stay_together_where_others_go_to_the_emptiest_node():
    asks = [Ask("learner", 4, 1, together=True), Ask("rollout", 2, 0.5)]
    plan = place(asks, [Node("a", 5), Node("b", 4)])
    assert [dict(placed.nodes) for placed in plan.placed] == [{"a": 4}, {"b": 2}]
    assert dict(place([Ask("learner", 4, 1, together=True)], [Node("a", 3), Node("b", 2)]).placed[0].nodes) == {"a": 3, "b": 1}


def test_roles_run_on_the_nodes_that_name_them_and_anywhere_where_none_does():
    named = [
        Node("head", 8),
        Node("l", 96, 8, resources=frozenset({"learner"})),
        Node("r", 48, 4, resources=frozenset({"rollout"})),
        Node("k", 32, resources=frozenset({"retrieval", "rewards"})),
    ]
    settings = ["learner.gpus_per_learner=1", "learner.num_learners=8", "train.gpus_per_rollout_worker=0.5", "train.num_rollout_workers=4"]
    there = ("learner", "rollout", "retrieval", "rewards")
    plan = place(of_a_run(*settings, there=there), named)
    assert {placed.ask.role: set(placed.nodes) for placed in plan.placed} == {
        "embedder": {"k"},
        "rewards": {"k"},
        "rollout": {"r"},
        "learner": {"l"},
        "evaluation": {"r"},
    }
    assert {placed.ask.resource for placed in place(of_a_run(*settings), [Node("a", 99, 99)]).placed} == {""}


def test_colocated_pairs_share_each_gpu():
    plan = place(
        of_a_run(*COLOCATED),
        node := [Node("a", 16, 2)],
    )
    roles = RoleResources.of(load_config(COLOCATED), ("learner", "rollout"))
    assert (roles.learner, roles.rollout) == ("rollout", "rollout")
    assert not plan.refusal
    assert node[0].shares == pytest.approx([0.0, 0.0])


SOME_ASK = st.builds(
    Ask,
    st.just("x"),
    st.integers(1, 4),
    st.sampled_from([0.5, 1.0]),
    st.sampled_from([0, 0.3, 0.6, 1]),
    st.sampled_from([0, GIB]),
)
SOME_NODE = st.tuples(st.integers(0, 8), st.integers(0, 4), st.integers(0, 8))


@within(deadline=None)
@given(asks=st.lists(SOME_ASK), nodes=st.lists(SOME_NODE, min_size=1, max_size=4))
def test_nothing_is_promised_twice(asks, nodes):
    left = [Node(f"n{i}", cpus, gpus, memory * GIB) for i, (cpus, gpus, memory) in enumerate(nodes)]
    plan = place(asks, left)
    for node, (cpus, gpus, memory) in zip(left, nodes, strict=True):
        here = plan.on(node.name)
        assert all(share >= -1e-6 for share in node.shares)
        if not plan.refusal:
            assert sum(ask.cpus * n for ask, n in here) <= cpus + 1e-6
            assert sum(ask.gpus * n for ask, n in here) <= gpus + 1e-6
            assert not memory or sum(ask.memory * n for ask, n in here) <= memory * GIB
    if not plan.refusal:
        assert sum(sum(placed.nodes.values()) for placed in plan.placed) == sum(ask.count for ask in asks)


def test_an_autoscaler_is_asked_for_the_room_of_each_process():
    asks = of_a_run("learner.num_learners=2", "learner.gpus_per_learner=1", "learner.cpus_per_learner=4", there=("learner", "retrieval"))
    bundles = bundles_of([*asks, Ask("shard", 1, 0.05, memory=GIB, resource="retrieval")])
    assert bundles.count({"CPU": 4.0, "GPU": 1.0, "learner": 0.001}) == 2
    assert bundles.count({"CPU": 0.05, "memory": float(GIB), "retrieval": 0.001}) == 1
    assert bundles.count({"CPU": 0.5}) == 4  # two rollout workers, two evaluation workers
    assert len(bundles) == sum(ask.count for ask in asks) + 1


def test_an_evaluation_starts_no_learner():
    config = load_config(["learner.num_learners=9", "learner.gpus_per_learner=1"])
    asks = asks_of_evaluation(config, RoleResources(), [[], []])
    assert {ask.role: ask.count for ask in asks} == {"embedder": 1, "evaluation": 2}


def test_the_request_to_an_autoscaler_ends_with_the_wait(ray_cluster):
    _initialize_internal_kv(ray._private.worker.global_worker.gcs_client)  # an earlier test's `Cluster` has forgotten it
    with growing() as grow:
        grow([Ask("learner", 2, 4, 1, resource="learner")])
        assert requested() == [{"CPU": 4.0, "GPU": 1.0, "learner": 0.001}] * 2
    assert requested() == []


def requested() -> list[dict[str, float]]:
    """What the autoscaler of the cluster would find when it looks next."""
    from ray._private.ray_constants import AUTOSCALER_RESOURCE_REQUEST_CHANNEL
    from ray.experimental.internal_kv import _internal_kv_get

    return json.loads(_internal_kv_get(AUTOSCALER_RESOURCE_REQUEST_CHANNEL))
