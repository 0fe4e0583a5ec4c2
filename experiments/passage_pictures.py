"""The pictures of passages, looked up in the knowledge bases: a search does not carry them, as the policy never sees them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

import pyarrow as pa
import pyarrow.compute as pc

from retrieval_actors.knowledge_base import KnowledgeBase
from rollout.records import Trajectory

Pictures = Mapping[tuple[str, str], bytes]
"""(knowledge base, id of the passage) -> encoded picture."""


def passage_pictures(trajectories: Iterable[Trajectory], folders: Mapping[str, str]) -> Pictures:
    """Of every passage that these episodes saw. `folders`: knowledge base -> where it lies. Only those that hold pictures are opened."""
    wanted: dict[str, set[str]] = defaultdict(set)
    for trajectory in trajectories:
        for step in trajectory.steps:
            for passage in step.passages:
                wanted[passage.kb].add(passage.id)
    found: dict[tuple[str, str], bytes] = {}
    for kb, ids in wanted.items():
        if kb not in folders:  # of a failed search, or in offline mode
            continue
        base = KnowledgeBase.open(folders[kb], verify=False)
        if "image" not in base.card.modality:
            continue
        for number in range(base.card.shards):
            table = base.shard(number).table.select(["id", "image"])
            rows = table.filter(pc.is_in(table["id"], value_set=pa.array(sorted(ids))))
            found |= {(kb, id): image for id, image in zip(*(rows[name].to_pylist() for name in ("id", "image")), strict=True) if image}
    return found
