"""What loading will need is said before anything is loaded."""

from __future__ import annotations

import numpy as np
import pytest

from retrieval_actors.actors.memory_plan import PROCESS_BYTES, plan_memory, readable
from retrieval_actors.build.from_passages import write_knowledge_base
from retrieval_actors.records import Passage


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    vectors = np.random.default_rng(0).normal(size=(600, 64)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    passages = [Passage(str(row), f"passage {row}") for row in range(600)]
    card = {"retriever_name": "R", "description": "", "modality": "text", "embedder": "minilm", "passages": passages, "vectors": vectors}
    folder = tmp_path_factory.mktemp("kbs")
    return [
        write_knowledge_base(folder / "exact", name="exact", shards=2, index="exact", **card),
        write_knowledge_base(folder / "small", name="small", shards=1, index="IVF8,SQ8", **card),
    ]


def test_an_exact_shard_needs_its_vectors_and_an_approximate_one_its_index(bases):
    plan = plan_memory(bases, replicas=2, nodes=[2**34])
    assert [(need.kb, need.shard, need.index, need.passages) for need in plan.needs] == [
        ("exact", 0, "exact", 300),
        ("exact", 1, "exact", 300),
        ("small", 0, "IVF8,SQ8", 600),
    ]
    exact, _, small = plan.needs
    assert exact.searched_bytes == pytest.approx(300 * 64 * 4, rel=0.01)
    assert 600 * 64 < small.searched_bytes < 600 * 64 * 1.5
    assert plan.resident_bytes == 2 * (3 * PROCESS_BYTES + 2 * exact.searched_bytes + small.searched_bytes)
    assert plan.line() == f"1,200 passages, 3 shards in 6 actors, {readable(plan.resident_bytes)} of 16.0 GiB to be searched in memory"
    assert plan.refusal() == ""


def test_small_shards_share_an_actor_by_size_and_a_large_one_has_its_own(bases):
    exact, _, small = plan_memory(bases, 1, []).needs
    assert exact.searched_bytes > small.searched_bytes
    labels = {
        shared: [actor.label for actor in plan_memory(bases, 1, [], shared_mib=shared / 2**20).actors] for shared in (0, 4e4, 1.4e5, 3e5)
    }
    assert labels == {
        0: ["small, shard 0", "exact, shard 0", "exact, shard 1"],
        4e4: ["small, shard 0", "exact, shard 0", "exact, shard 1"],
        1.4e5: ["small, shard 0; exact, shard 0", "exact, shard 1"],
        3e5: ["small, shard 0; exact, shard 0; exact, shard 1"],
    }
    plan = plan_memory(bases, 2, [2**34], shared_mib=1)
    assert plan.resident_bytes == 2 * (PROCESS_BYTES + 2 * exact.searched_bytes + small.searched_bytes)
    assert plan.line().startswith("1,200 passages, 3 shards in 2 actors, ")


def test_what_does_not_fit_is_refused_with_the_mend(bases):
    assert "an actor (exact, shard 0) searches" in plan_memory(bases, 1, [PROCESS_BYTES] * 8).refusal()
    assert "build it with more shards" in plan_memory(bases, 1, [PROCESS_BYTES] * 8).refusal()
    crowded = plan_memory(bases, 3, [4 * PROCESS_BYTES]).refusal()
    assert crowded.startswith("the knowledge bases search 1.1 GiB, the nodes offer 480.0 MiB: add nodes, lower retrieval.replicas")
    assert plan_memory(bases, 3, []).refusal() == ""
