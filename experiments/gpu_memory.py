"""What the processes of a run hold on each GPU, before any of them exists: parameters, gradients, optimizer, keys and values, activations.

The learner's part is `learner/memory_plan.py`. A rollout or evaluation worker holds the policy, the keys and values of `rollout.batch_tokens`
tokens (and, while that cache grows, the old and the new one), and what one prefill or one step of decoding needs; with
`learner.transport=collective` a rollout worker keeps the weights as they were received, too. Embedders and shards are not counted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from experiments.config import TrainConfig
from experiments.findings import Finding
from experiments.placement import Ask, Node, place
from learner.memory_plan import Counted, RankMemory, counted, rank_memory
from learner.saved_activations import SavedBytes, saved_bytes
from rollout.engines.transformers_engine import PREFILL_TOKENS

GIB = 2**30
PICTURE_TOKENS = 324
"""Of a picture of 504 x 504 pixels: what a row is counted with."""
CONTEXT_BYTES = GIB // 2
"""Of CUDA and its kernels in one process: an assumption, not measured here."""
FRAGMENTED = 0.9
"""Share of a GPU that can be used before the gaps between tensors matter: an assumption."""
SAMPLING_BYTES = 16
"""Of each word and response under way in a step of decoding: logits, probabilities and their sorted copy, float32."""


@dataclass(frozen=True)
class GpuShare:
    """What one process holds on its GPU, in bytes, by name."""

    who: str
    parts: dict[str, int]

    @property
    def total(self) -> int:
        return sum(self.parts.values())


def learner_memory(model: Any, config: TrainConfig) -> tuple[Counted, SavedBytes, RankMemory]:
    """`model`: as `saved_bytes` takes it. Counted with the longest micro-batch, full of response tokens, and a picture for each
    `rollout.max_prompt_tokens`."""
    longest = max(map(config.rollout.longest, ("plan", "answer", "final")))
    tokens = max(config.learner.tokens_per_micro_batch, config.rollout.max_prompt_tokens + longest)  # a longer row goes alone
    rows = max(1, tokens // max(1, config.rollout.max_prompt_tokens))
    vision = model.config.vision_config
    patches = rows * vision.spatial_merge_size**2 * PICTURE_TOKENS
    saved = saved_bytes(model, tokens, tokens, patches)
    numbers = counted(model)
    return numbers, saved, rank_memory(numbers, config.learner, saved)


def learner_share(memory: RankMemory) -> GpuShare:
    """At its peak: the larger of backward pass and optimizer step."""
    backward = memory.exchange + memory.activations >= memory.step
    return GpuShare(
        "learner",
        {
            "parameters": memory.parameters,
            "gradients": memory.gradients,
            "optimizer": memory.optimizer,
            "reference": memory.reference,
            "exchange": memory.exchange if backward else 0,
            "activations": memory.activations if backward else memory.step,
            "CUDA": CONTEXT_BYTES,
        },
    )


def sampler_share(who: str, policy: Any, numbers: Counted, config: TrainConfig) -> GpuShare:
    """`policy`: configuration of the model; `numbers`: without adapters."""
    text, b = policy.get_text_config(), 2 if config.learner.dtype == "bfloat16" else 4
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    a_token = 2 * text.num_hidden_layers * text.num_key_value_heads * size * b
    prefill = PREFILL_TOKENS * (3 * text.intermediate_size + 4 * text.hidden_size) * b
    decode = config.rollout.slots * text.vocab_size * SAMPLING_BYTES
    received = who == "rollout" and config.learner.transport == "collective" and config.rollout.engine != "vllm"
    return GpuShare(
        who,
        {
            "parameters": numbers.parameters * b,
            "weights received": numbers.parameters * b if received else 0,
            "KV cache": a_token * config.rollout.batch_tokens,
            "KV cache growing": a_token * config.rollout.batch_tokens,
            "activations": max(prefill, decode),
            "CUDA": CONTEXT_BYTES,
        },
    )


def gpus_of(config: TrainConfig, shares: dict[str, GpuShare], asks: Sequence[Ask]) -> dict[str, list[GpuShare]]:
    """Kind of GPU -> who is on the fullest one of that kind, where all `asks` are laid onto as few GPUs as take them."""
    on_gpus = [ask for ask in asks if ask.gpus]
    cpus, resources = sum(ask.count * ask.cpus for ask in on_gpus), frozenset(ask.resource for ask in on_gpus)
    node = Node("all", cpus, sum(ask.count for ask in on_gpus), resources=resources)
    place(on_gpus, [node])
    found: dict[str, list[GpuShare]] = {}
    for occupants in node.occupants:
        holders = [shares[ask.role] for ask in occupants if ask.role in shares]
        kind = "every GPU" if config.train.placement == "colocated" else f"{_foremost(holders)} GPU"
        if holders and _total(holders) > _total(found.get(kind, [])):
            found[kind] = holders
    return found


def _foremost(holders: Sequence[GpuShare]) -> str:
    """Whom a GPU is named for."""
    return next((who for who in ("learner", "rollout", "evaluation") if any(share.who == who for share in holders)), "")


def _total(shares: Sequence[GpuShare]) -> int:
    return sum(share.total for share in shares)


def memory_table(kinds: dict[str, list[GpuShare]], gpu_gib: float) -> Table:
    names = list(dict.fromkeys(name for shares in kinds.values() for share in shares for name in share.parts))
    table = Table(title=f"GiB on a GPU of {gpu_gib:g} GiB, at the height of it", box=None, padding=(0, 2, 0, 0), title_justify="left")
    table.add_column("")
    for kind in (*names, "in all"):
        table.add_column(kind, justify="right")
    for kind, shares in kinds.items():
        for share in shares:
            cells = [f"{share.parts[name] / GIB:.1f}" if share.parts.get(name) else "" for name in names]
            table.add_row(share.who, *cells, f"{share.total / GIB:.1f}")
        table.add_row(kind, *[""] * len(names), f"{_total(shares) / GIB:.1f}", style="bold")
    return table


def fits(kinds: dict[str, list[GpuShare]], gpu_gib: float, memory: RankMemory, config: TrainConfig) -> list[Finding]:
    """Whether each kind of GPU is large enough, and what would make it so."""
    found = []
    for kind, shares in kinds.items():
        needed, usable = _total(shares) / GIB, gpu_gib * FRAGMENTED
        largest = max(((share, name) for share in shares for name in share.parts), key=lambda pair: pair[0].parts[pair[1]])
        mend = f"the largest part is {largest[1]} of the {largest[0].who}: {_mend(largest[1], config)}" if needed > usable else ""
        found.append(Finding(kind, f"{needed:.1f} GiB of {gpu_gib:g} (of which {usable:.1f} are counted on)", mend))
    if config.learner.gpus_per_learner:
        per_node = config.learner.num_learners * memory.host / GIB
        found.append(
            Finding("main memory of the learners", f"{math.ceil(per_node)} GiB for checkpoints and what is offloaded, all ranks together")
        )
    return found


def _mend(part: str, config: TrainConfig) -> str:
    learner = config.learner
    checkpointing = "" if learner.gradient_checkpointing else "learner.gradient_checkpointing=true, or "
    return {
        "activations": f"{checkpointing}a lower learner.tokens_per_micro_batch (rollout workers: rollout.slots)",
        "optimizer": "learner.zero_stage=1 or higher with more learner.num_learners, learner.lora_rank, or learner.offload=optimizer",
        "gradients": "learner.zero_stage=2 or higher with more learner.num_learners, or learner.lora_rank",
        "parameters": "learner.dtype=bfloat16, or for the learner learner.zero_stage=3",
        "exchange": "learner.zero_stage=1, which exchanges gradients in place",
        "weights received": "learner.transport=object_store, which hands them over in main memory",
        "KV cache": "a lower rollout.batch_tokens",
        "KV cache growing": "a lower rollout.batch_tokens",
        "reference": "learner.zero_stage=3, learner.lora_rank, or learner.kl_weight=0",
    }.get(part, "a larger GPU")
