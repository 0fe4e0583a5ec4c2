"""What to try, by who was lost and why. docs/troubleshooting.md tells the same at length."""

from __future__ import annotations

MEMORY = {
    "rollout worker": "less at a time: lower rollout.batch_tokens or rollout.slots; or fewer copies of the policy: train.num_rollout_workers",
    "evaluation worker": "less at a time: lower rollout.batch_tokens or rollout.slots; or fewer copies of the policy: train.num_rollout_workers",
    "learner rank": "lower learner.tokens_per_micro_batch; learner.gradient_checkpointing=true; learner.zero_stage=2 or 3 over more learners; "
    "learner.offload=optimizer moves memory from the GPU to the node, not the other way",
    "reward actor": "fewer questions at a time: lower train.questions_per_iteration, or more rollout workers, which makes chunks smaller",
    "shard": "more and smaller shards (build the knowledge base with more shards), more nodes, or an approximate index (docs/knowledge_bases.md)",
    "embedder": "a smaller embedder, lower retrieval.cache_size, or a node with more memory",
    "node": "nodes with more memory, or fewer processes on each",
}
"""Role -> mend, when its process ran out of memory."""

PLAIN = {
    "rollout worker": "nothing: it is restarted, and what it had not finished is rolled out again; if it repeats, see the end of its log",
    "evaluation worker": "nothing: it is restarted, and its questions are asked again",
    "learner rank": "nothing, as long as train.max_restarts lasts: the group starts anew from the last checkpoint; lower train.checkpoint_every to "
    "repeat less",
    "reward actor": "nothing: it is restarted and asked again; when a reward of your own ends it, try that on one trajectory first",
    "shard": "nothing: it is restarted while searches wait up to retrieval.deadline_s; retrieval.replicas=2 answers meanwhile",
    "embedder": "nothing: it is restarted while searches wait up to retrieval.deadline_s",
    "reranker": "nothing: it is restarted while searches wait up to retrieval.deadline_s",
    "search log": "nothing: it only counts, and its counts begin anew",
    "node": "look why the machine or its Ray ended (its raylet.out); a cluster with spare room takes its processes over",
    "MLflow": "is the server of tracking.uri up? The same figures are in metrics.jsonl; tracking.mlflow=false leaves it out",
    "driver": "the same command with train.resume=auto goes on from the last checkpoint",
}
"""Role -> mend, otherwise."""

FINAL = {
    "rollout worker": "run it again with train.resume=auto; the last lines of its log say why it would not come back",
    "learner rank": "run it again with train.resume=auto; raise train.max_restarts when the nodes are known to come and go",
    "reward actor": "run it again with train.resume=auto; one that dies of every batch runs out of memory, or a reward of your own ends it",
    "node": "bring the node back, or ask for less, then run it again with train.resume=auto",
}
"""Role -> mend, when the run ended with it."""

HANG = (
    "raise learner.deadline_s when the step is known to take longer",
    "else a process hangs: on several GPUs look at NCCL (NCCL_DEBUG=INFO), at firewalls between the nodes, and at `nvidia-smi`",
)


def mend_of(role: str, out_of_memory: bool, fatal: bool, hang: bool = False) -> tuple[str, ...]:
    """`role`: as in `Failure.role`; the longest known beginning of it decides."""
    kind = next((known for known in sorted(PLAIN, key=len, reverse=True) if role.startswith(known)), "")
    found = [MEMORY[kind]] if out_of_memory and kind in MEMORY else []
    found += HANG if hang else ()
    if fatal:
        found.append(FINAL.get(kind, "train.resume=auto goes on from the last checkpoint"))
    elif kind and not found:
        found.append(PLAIN[kind])
    return tuple(found)
