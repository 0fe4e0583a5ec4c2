"""What a run needs, and whether it is available: the report of `train.dry_run=true`, and a part of the doctor's.
Nothing is started or written. No GPU, weights or Ray are needed: the policy is built with its real shapes on the meta device."""

import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console

from experiments.cluster import placement
from experiments.cluster.findings import Finding, any_fails, findings_table, number_table, verdict
from experiments.cluster.gpu_memory import learner_memory, processes_on_a_gpu, sampler_memory
from experiments.cluster.policy_shape import PolicyShape, check_policy, policy_shape
from experiments.config import RunConfigError, TrainConfig
from experiments.datasets import Dataset, KnowledgeBaseSource, load_dataset
from experiments.datasets.dataset import no_training_questions
from retrieval_actors.actors.memory_plan import readable
from retrieval_actors.actors.start_actors import open_configured
from retrieval_actors.knowledge_base import KnowledgeBaseError
from retrieval_actors.sources.data_files import DataError
from rewards.terms import composed_of
from rollout.engines import chosen_engine

GIB = 2**30
USABLE = 0.9  # share of a GPU's memory before fragmentation matters: an assumption
TOO_LARGE = {
    "model states": "learner.lora_rank, a higher learner.zero_stage with more learner.num_learners, or learner.offload=optimizer",
    "activations": "learner.gradient_checkpointing=true, or a lower learner.tokens_per_micro_batch (rollout workers: rollout.slots)",
    "KV cache": "a lower rollout.batch_tokens",
    "weights received": "learner.transport=object_store, which hands them over in main memory",
}


def dry_run(config: TrainConfig, console: Console) -> bool:
    """Prints what a run needs; returns whether it would start."""
    findings = list(run_findings(config, None, console))
    console.print(findings_table(findings), highlight=False)
    console.print(f"dry run: {verdict(findings)}; nothing was started", highlight=False)
    return not any_fails(findings)


def run_findings(config: TrainConfig, nodes: Sequence[placement.Node] | None, console: Console) -> Iterator[Finding]:
    """Checks of data, policy, memory, knowledge bases and placement; prints tables. `nodes`: of the running cluster, or None."""
    dataset, findings = (None, []) if config.train.replay_rollouts else _check_data(config)
    yield from findings
    yield from _check_policy(config, console)
    terms = ", ".join(term.name for term in composed_of(config.reward.terms)) or "step"
    engine = chosen_engine(config.rollout, config.train.gpus_per_rollout_worker > 0)
    yield Finding("rollout engine", engine if engine == config.rollout.engine else f"{engine} (rollout.engine={config.rollout.engine})")
    yield Finding("rewards, prompts", f"{terms}; {config.rollout.prompts}")
    named = [KnowledgeBaseSource(name, Path(folder)) for name, folder in config.retrieval.folders.items()]
    used = [source for kbs in placement.knowledge_bases_of(dataset) for source in kbs] if dataset else named
    for source in {source.folder: source for source in used}.values():
        yield check_folder(source, config.retrieval.hybrid)
    yield check_placement(config, dataset, nodes, console)


def _check_data(config: TrainConfig) -> tuple[Dataset | None, list[Finding]]:
    try:
        dataset = load_dataset(config.data, config.evaluation, config.retrieval.folders)
    except (RunConfigError, DataError) as error:
        return None, [Finding("data", config.data.name, str(error))]
    counts = f"{len(dataset.train):,} training, {len(dataset.validation):,} validation, {len(dataset.heldout):,} held-out questions"
    notes = [Finding("data", note, "see docs/04_data.md", fatal=False) for note in dataset.notes]
    return dataset, [Finding("data", f"{config.data.name}: {counts}", no_training_questions(dataset, config.data)), *notes]


def _check_policy(config: TrainConfig, console: Console) -> Iterator[Finding]:
    try:
        shape = policy_shape(config.train.policy, config.learner)
    except ValueError as error:  # its shapes are not here, or LoRA names layers that it does not have
        yield Finding("policy", "cannot be built", str(error))
        return
    yield from check_policy(shape, config.rollout.max_prompt_tokens + config.rollout.max_new_tokens)
    yield from _check_memory(config, shape, console)


def _check_memory(config: TrainConfig, shape: PolicyShape, console: Console) -> Iterator[Finding]:
    sizes = [parameter.numel() for parameter in shape.policy.model.parameters()]
    trained = sum(parameter.numel() for parameter in shape.policy.model.parameters() if parameter.requires_grad)
    yield Finding("parameters", f"{sum(sizes):,}, {trained:,} trained; ZeRO {config.learner.zero_stage}, {config.learner.dtype}")
    held = {"learner": learner_memory(config, shape.policy.model.config, sum(sizes), trained, max(sizes))}
    held["rollout"] = sampler_memory(config, shape.policy.model.config, sum(sizes))
    parts = list(dict.fromkeys(part for memory in held.values() for part in memory))
    rows = []
    for role, memory in held.items():
        numbers = [f"{memory[part] / GIB:.1f}" if part in memory else "" for part in parts]
        rows.append((role, *numbers, f"{sum(memory.values()) / GIB:.1f}"))
    console.print(number_table("GiB of each process, at its peak", ("role", *parts, "in all"), rows), highlight=False)
    for gpu, roles in processes_on_a_gpu(config).items():
        needed = sum(count * sum(held[role].values()) for role, count in roles.items()) / GIB
        total, usable = config.ray.gpu_gib, config.ray.gpu_gib * USABLE
        role, part = max(((role, part) for role in roles for part in held[role]), key=lambda pair: held[pair[0]][pair[1]])
        fix = f"the largest part is {part} of the {role}: {TOO_LARGE.get(part, 'learner.dtype=bfloat16, or a larger GPU')}"
        there = ", ".join(f"{count} x {role}" for role, count in roles.items())
        yield Finding(gpu, f"{there}: {needed:.1f} GiB of {total:g} ({usable:.1f} usable)", fix if needed > usable else "")


def check_folder(source: KnowledgeBaseSource, hybrid: bool = False) -> Finding:
    """Whether a knowledge base is complete and searchable. Sizes of files are checked; a run checks checksums when it starts."""
    what, can_be_built = f"knowledge base {source.name}", source.passages is not None
    if not source.folder.exists():
        if can_be_built:
            return Finding(what, f"{source.folder}: not there yet, will be built first")
        fix = f"r1-router kb build SOURCE {source.folder}, or set retrieval.folders.{source.name}"
        return Finding(what, f"{source.folder}: no such folder", fix)
    try:
        base = open_configured(source.name, str(source.folder), hybrid)
    except KnowledgeBaseError as error:
        fix = f"remove {source.folder}, and it is built again" if can_be_built else "build it again, or"
        return Finding(what, str(error), f"{fix} set retrieval.folders.{source.name}")
    size = readable(sum(int(recorded["bytes"]) for recorded in base.manifest["files"].values()))
    return Finding(what, f"{base.card.passages:,} passages in {base.card.shards} shards, {size}, {base.card.embedder}")


def check_placement(config: TrainConfig, dataset: Dataset | None, nodes: Sequence[placement.Node] | None, console: Console) -> Finding:
    """Whether all processes fit on `nodes`; for None, on this machine if none needs a GPU, else on the nodes of `ray.cluster_file`."""

    def requests(nodes: Sequence[placement.Node]) -> list[placement.ResourceRequest]:
        placed = placement.on_nodes_of_roles(config, {name for node in nodes for name in node})
        try:
            return placement.requests_of(placed, placement.knowledge_bases_of(dataset))
        except (KnowledgeBaseError, ValueError):  # a broken knowledge base has a finding of its own
            return placement.requests_of(placed, [])

    where, file = "the cluster", config.ray.cluster_file
    if nodes is None and not (config.learner.gpus_per_learner or config.train.gpus_per_rollout_worker):
        nodes, where = [{"CPU": config.ray.num_cpus or max(os.cpu_count() or 1, 8), "memory": math.inf}], "this machine"
    elif nodes is None:
        if not file:
            return Finding("placement", "not checked: ray.cluster_file is empty", "set it to the file of your cluster", fatal=False)
        try:
            nodes, where = placement.cluster_file_nodes(file), Path(file).name
        except RunConfigError as error:
            return Finding("placement", "not checked", str(error))
    if not nodes:
        return Finding("placement", "not checked: no cluster answers")
    console.print(placement.requests_table(requests(nodes)), highlight=False)
    if not (fix := placement.missing(requests(nodes), nodes)):
        return Finding("placement", f"room for everything on {where}")
    if where == Path(file).name and not placement.missing(requests(grown := placement.cluster_file_nodes(file, "max_workers")), grown):
        return Finding("placement", f"room for everything on {where}, grown to max_workers (ray.join_s=600 asks for that)")
    return Finding("placement", f"no room for everything on {where}", fix)
