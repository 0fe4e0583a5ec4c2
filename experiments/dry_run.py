"""`python -m experiments.train CONFIG train.dry_run=true`: everything that a run would use, built or looked at, without GPU, weights or Ray.

Numbers of an iteration; the policy with its real shapes on the meta device, adapters and optimizer with it; tokenizer, chat template, picture
tokens; data and knowledge bases; what a GPU holds; who runs where, on the nodes that `ray.cluster_file` names (without GPUs: on this machine).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
import yaml
from rich.console import Console

from experiments.config import REPOSITORY, RunConfigError, TrainConfig
from experiments.datasets import Dataset, load_dataset
from experiments.derived_numbers import derived_table
from experiments.findings import Finding, any_fails, findings_table, verdict
from experiments.gpu_memory import GpuShare, fits, gpus_of, learner_memory, learner_share, memory_table, sampler_share
from experiments.kb_findings import examine_knowledge_bases, sources_of
from experiments.placement import Node, Plan, place
from experiments.placement_table import knowledge_bases_of, plan_table
from experiments.policy_shape import PolicyShape, examine_policy, policy_shape
from experiments.question_file import DataError
from experiments.run_asks import RoleResources, asks_of
from learner.engine import engine_settings
from learner.memory_plan import counted
from learner.schedule import learning_rate
from rewards.composition import composed_of
from rollout.prompts import PROMPT_SETS


def dry_run(config: TrainConfig, console: Console) -> bool:
    """Prints all of it; returns whether a run would start."""
    console.print(derived_table(config), highlight=False)
    findings: list[Finding] = []
    dataset, found = _data(config)
    findings += found
    try:
        shape = policy_shape(
            config.train.policy, replace(config.learner, gradient_checkpointing=False)
        )  # what a layer saves is measured on it
        findings += [
            *examine_policy(shape, config.rollout.max_prompt_tokens + max(map(config.rollout.longest, ("plan", "answer", "final"))))
        ]
        findings += _built(config, shape, dataset, console)
    except RunConfigError as error:
        findings.append(Finding("policy", "missing", str(error)))
    except ValueError as error:  # adapters for layers that there are not
        findings.append(Finding("learner", "cannot be built", str(error)))
    findings += examine_knowledge_bases(config, sources_of(config, dataset))
    findings.append(examine_placement(config, dataset, console))
    console.print(findings_table(findings), highlight=False)
    console.print(f"dry run: {verdict(findings)}; nothing was started", highlight=False)
    return not any_fails(findings)


def _data(config: TrainConfig) -> tuple[Dataset | None, list[Finding]]:
    if config.train.replay_rollouts:
        return None, []
    try:
        dataset = load_dataset(config.data, config.evaluation, config.retrieval.folders)
    except (RunConfigError, DataError) as error:
        return None, [Finding("data", config.data.name, str(error))]
    counts = f"{len(dataset.train):,} training, {len(dataset.validation):,} validation, {len(dataset.heldout):,} held-out questions"
    mend = "" if dataset.train else f"data.name={config.data.name} is for evaluation only: choose another for training"
    notes = [Finding("data", note, "see docs/data.md", fatal=False) for note in dataset.notes]
    return dataset, [Finding("data", f"{config.data.name}: {counts}", mend), *notes]


def _built(config: TrainConfig, shape: PolicyShape, dataset: Dataset | None, console: Console) -> Iterator[Finding]:
    """The learner's objects, and the memory of every process that holds the policy."""
    without_adapters = policy_shape(config.train.policy, replace(config.learner, lora_rank=0)) if config.learner.lora_rank else shape
    alone = counted(without_adapters.model)
    numbers, saved, memory = learner_memory(shape.model, config)
    trained = [parameter for parameter in shape.model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=learning_rate(config.learner, 0), weight_decay=config.learner.weight_decay)
    stage = engine_settings(config.learner)["zero_optimization"]["stage"]
    vision = f"{alone.vision:,} of the vision tower"
    yield Finding("parameters", f"{alone.parameters:,} ({vision}), {numbers.trained:,} trained in {len(trained)} tensors")
    yield Finding("optimizer", f"{type(optimizer).__name__}, ZeRO {stage}, {config.learner.dtype}, {config.learner.num_learners} ranks")
    terms = ", ".join(term.name for term in composed_of(config.reward.terms)) or "step"
    PROMPT_SETS[config.rollout.prompts]
    yield Finding("rewards, prompts", f"{terms}; {config.rollout.prompts}")
    yield Finding(
        "activations",
        f"a layer keeps {saved.layer / config.learner.tokens_per_micro_batch:,.0f} bytes a token, the head "
        f"{saved.head / config.learner.tokens_per_micro_batch:,.0f}",
    )
    shares = {who: sampler_share(who, shape.config, alone, config) for who in ("rollout", "evaluation")}
    shares["learner"] = learner_share(memory)
    asks = asks_of(config, RoleResources.of(config, ()), knowledge_bases_of(dataset))
    kinds: dict[str, list[GpuShare]] = gpus_of(config, shares, asks)
    on_cpu = {} if kinds else {"this machine": list(shares.values())}
    console.print(memory_table(kinds or on_cpu, config.ray.gpu_gib), highlight=False)
    yield from fits(kinds, config.ray.gpu_gib, memory, config)


def examine_placement(config: TrainConfig, dataset: Dataset | None, console: Console) -> Finding:
    """Prints who runs where; what has no place, or no file to look for it in, fails."""
    try:
        return _placement(config, dataset, console)
    except RunConfigError as error:
        return Finding("placement", "not looked at", str(error))


def _placement(config: TrainConfig, dataset: Dataset | None, console: Console) -> Finding:
    if not (config.learner.gpus_per_learner or config.train.gpus_per_rollout_worker):
        return _laid_out(config, dataset, [Node("here", config.ray.num_cpus or max(os.cpu_count() or 1, 8))], "this machine", console)
    if not config.ray.cluster_file:
        return Finding("placement", "not looked at: ray.cluster_file is empty", "name the file of your cluster there", fatal=False)
    file = next((path for path in (Path(config.ray.cluster_file), REPOSITORY / config.ray.cluster_file) if path.is_file()), None)
    if file is None:
        raise RunConfigError(
            f"ray.cluster_file is {config.ray.cluster_file!r}: no such file; expected a file of Ray's launcher, or '' for none"
        )
    most = cluster_file_nodes(file, "max_workers")
    if placed_on(config, dataset, cluster_file_nodes(file)).refusal and not placed_on(config, dataset, most).refusal:
        return _laid_out(config, dataset, most, f"{file.name}, grown to max_workers (ray.join_s=600 asks for that)", console)
    return _laid_out(config, dataset, cluster_file_nodes(file), file.name, console)


def _laid_out(config: TrainConfig, dataset: Dataset | None, nodes: Sequence[Node], where: str, console: Console) -> Finding:
    plan = placed_on(config, dataset, nodes)
    console.print(plan_table(plan, nodes), highlight=False)
    mend = f"{plan.refusal}; or lay it onto another cluster: ray.cluster_file" if plan.refusal else ""
    return Finding("placement", f"on {where}: {'no place for all' if mend else 'everything has a place'}", mend)


def placed_on(config: TrainConfig, dataset: Dataset | None, nodes: Sequence[Node]) -> Plan:
    """The run laid onto such nodes, which stay as they are."""
    roles = RoleResources.of(config, {name for node in nodes for name in node.resources})
    return place(asks_of(config, roles, knowledge_bases_of(dataset)), [replace(node) for node in nodes])


def cluster_file_nodes(path: Path, workers: str = "min_workers") -> list[Node]:
    """The nodes that a cluster file starts with, `min_workers` of each kind, or can grow to, `max_workers`; and the head.

    Raises RunConfigError for a file of another kind.
    """
    cluster = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(cluster, dict) or not {"available_node_types", "head_node_type"} <= cluster.keys():
        raise RunConfigError(
            f"ray.cluster_file is {path}: no file of Ray's launcher; expected available_node_types and head_node_type there"
        )
    nodes = []
    for kind, node in cluster["available_node_types"].items():
        count = 1 if kind == cluster["head_node_type"] else max(node.get("min_workers", 0), node.get(workers, 0))
        resources = dict(node["resources"])
        cpus, gpus, memory = (resources.pop(name, 0) for name in ("CPU", "GPU", "memory"))
        nodes += [Node(f"{kind} {i + 1}" if count > 1 else kind, cpus, gpus, memory, frozenset(resources)) for i in range(count)]
    return nodes
