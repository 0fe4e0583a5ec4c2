"""What `bench gpu` measures on: the device, its limits, sizes, and a policy of the 3B shape with random weights."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from experiments.cluster.policy_shape import SHAPES
from rollout.policies.load import kind_of
from rollout.policies.qwen_vl import QwenVLPolicy


@dataclass(frozen=True)
class Sizes:
    changes: Mapping[str, Mapping[str, Any]]  # of the 3B shape
    slots: tuple[int, ...]  # responses decoded at a time
    prompts: tuple[int, int]  # tokens of prompts, at least and below
    rooms: tuple[int, int]  # tokens of responses, at least and below
    micro_batches: tuple[int, ...]  # tokens
    row: tuple[int, int]  # of a micro-batch: tokens of the prompt, of each response
    matrix: int
    copied: int  # bytes
    run: tuple[str, ...]


FULL = Sizes({}, (64, 256, 512), (200, 1000), (32, 256), (4096, 16384), (512, 32), 8192, 2**31, ("laptop.yaml", "train.iterations=5"))
TINY = Sizes(
    {
        "text_config": {
            **{"hidden_size": 256, "intermediate_size": 64, "num_hidden_layers": 2, "layer_types": ["full_attention"] * 2},
            **{"num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 1000, "bos_token_id": 0, "eos_token_id": 1},
        },
        "vision_config": {"depth": 1, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 256},
    },
    *((8,), (20, 60), (4, 12), (400,), (32, 8), 64, 2**16, ("smoke.yaml", "train.iterations=1")),
)


class RandomPolicy(QwenVLPolicy):
    """Without a tokenizer: prompts are token ids."""

    pad_token_id, end_token_id, banned_token_ids = 0, 1, (2,)


def random_policy(changes: Mapping[str, Mapping[str, Any]], device: torch.device) -> RandomPolicy:
    """Of the 3B shape with these changes, in bfloat16."""
    kind, config = kind_of(SHAPES / "qwen2.5-vl-3b-instruct")
    shape = config.to_dict()
    config = type(config).from_dict(shape | {part: {**shape[part], **changed} for part, changed in changes.items()})
    torch.manual_seed(0)
    with device:
        return RandomPolicy(kind.auto.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa").eval())


@dataclass(frozen=True)
class Bench:
    device: torch.device
    sizes: Sizes
    bandwidth: float  # bytes/s, read + written by a copy on the device
    products: float  # FLOP/s in bfloat16

    @classmethod
    def of(cls, sizes: Sizes) -> Bench:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        source, target = (torch.zeros(sizes.copied, dtype=torch.uint8, device=device) for _ in range(2))
        copy_s = seconds_of(lambda: target.copy_(source), device, 20)
        left, right = (torch.randn(sizes.matrix, sizes.matrix, device=device).bfloat16() for _ in range(2))
        product_s = seconds_of(lambda: left @ right, device, 20)
        return cls(device, sizes, 2 * sizes.copied / copy_s, 2 * sizes.matrix**3 / product_s)


def seconds_of(run: Callable[[], Any], device: torch.device, times: int) -> float:
    """Median, after one run that is not counted."""

    def once() -> float:
        began = time.perf_counter()
        run()
        wait_for(device)
        return time.perf_counter() - began

    return statistics.median([once() for _ in range(times + 1)][1:])


def wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
