"""Who does what in a run: every actor by the name that people know it under."""

from __future__ import annotations

from typing import Any

PHASES = {
    "push": "broadcast",
    "rollout": "roll out",
    "score": "score",
    "learn": "update",
    "set_up": "set up",
    "restart_learner": "set up",
    "evaluate_before": "evaluate",
    "baselines": "evaluate",
    "validate": "evaluate",
    "evaluate_after": "evaluate",
    "checkpoint": "save",
    "train": "train",
}
"""What timelines call a phase -> what people call it."""
SEARCHING = ("shard", "word index", "embedder", "reranker", "search log")
"""Roles that search while others roll out."""


def roles_of(parts: Any) -> dict[str, Any]:
    """Role -> handle of its actor, for all actors of a run (`experiments.parts.Parts`)."""
    algorithm = parts.algorithm
    found = {f"rollout worker {number}": handle for number, handle in algorithm.workers.handles.items()}
    found |= {f"learner rank {number}": handle for number, handle in enumerate(algorithm.learner_group.ranks)}
    found |= {f"reward actor {number}": handle for number, handle in enumerate(algorithm.config.reward_actors)}
    found |= {f"evaluation worker {number}": handle for number, handle in enumerate(parts.evaluator.workers)}
    for retriever, of in ((parts.retriever, ""), (parts.evaluation_retriever, " of the evaluation")):
        if of and parts.evaluation_retriever is parts.retriever:
            continue
        for kb, shards in retriever.shards.items():
            for number, replicas in enumerate(shards):
                for replica, handle in enumerate(replicas):
                    copy = f", replica {replica}" if len(replicas) > 1 else ""
                    found[f"shard {number} of knowledge base {kb}{copy}{of}"] = handle
        found |= {f"word index of knowledge base {kb}{of}": handle for kb, handle in retriever.words.items()}
        found |= {f"embedder {name}{of}": handle for name, handle in retriever.embedders.items() if handle not in retriever.lent}
        if retriever.reranker is not None and retriever.reranker not in retriever.lent:
            found[f"reranker{of}"] = retriever.reranker
        found[f"search log{of}"] = retriever.log
    return found


def phase_of(role: str, found: str) -> str:
    """`found`: the name of the phase in a timeline; knowledge bases search while others roll out."""
    phase = PHASES.get(found, found) or "train"
    return "search" if phase == "roll out" and role.startswith(SEARCHING) else phase
