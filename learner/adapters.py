"""LoRA (Hu et al. 2021, arXiv 2106.09685): low-rank adapters inside the policy's own model, and the policy as everybody else sees it.

Rollout workers, checkpoints of the policy and the endpoint know nothing of adapters: what leaves the learner has the policy's own names, with
the adapters' product added to the weights they belong to. With adapters switched off, the model is the policy that training began with.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer

from learner.config import LearnerConfig

ADAPTER, BASE = "default", ".base_layer"


def add_adapters(language_model: torch.nn.Module, config: LearnerConfig) -> None:
    """Put adapters beside the linear layers that `lora_targets` names, in place.

    Raises ValueError when a name fits no layer: its key, what was found, and the names that there are.
    """
    linear = sorted({name.rpartition(".")[2] for name, m in language_model.named_modules() if isinstance(m, torch.nn.Linear)})
    for name in config.lora_targets:
        if name not in linear:
            raise ValueError(
                f"learner.lora_targets names {name!r}, which no linear layer of the language model is; expected some of {linear}"
            )
    lora = LoraConfig(r=config.lora_rank, lora_alpha=config.lora_alpha, target_modules=list(config.lora_targets), lora_dropout=0.0)
    inject_adapter_in_model(lora, language_model, ADAPTER)


@contextmanager
def without_adapters(model: torch.nn.Module) -> Iterator[None]:
    """The model as it was before `add_adapters`."""
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def published_parameters(model: torch.nn.Module, partitioned: bool) -> Iterator[tuple[str, torch.Tensor]]:
    """Names and values, one at a time, as the policy's model names them; adapters are merged into what they adapt.

    `partitioned`: ZeRO-3 has spread them over the ranks, which all have to come here; a value is whole until the next one is asked for.
    """
    adapted = {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    for name, parameter in model.named_parameters():
        layer, _, kind = name.rpartition(".")
        owner = layer.removesuffix(BASE)
        if owner not in adapted:
            if not any(name.startswith(f"{place}.lora_") for place in adapted):
                with whole([parameter], partitioned):
                    yield name, parameter.detach()
        elif kind == "weight":
            lora: Any = adapted[owner]
            with whole([parameter, lora.lora_A[ADAPTER].weight, lora.lora_B[ADAPTER].weight], partitioned), torch.no_grad():
                yield f"{owner}.{kind}", parameter + lora.get_delta_weight(ADAPTER)
        else:
            with whole([parameter], partitioned):
                yield f"{owner}.{kind}", parameter.detach()


def whole(parameters: list[torch.nn.Parameter], partitioned: bool) -> AbstractContextManager[None]:
    """Within it every rank has all of these."""
    if not partitioned:
        return nullcontext()
    import deepspeed  # not before the environment of the rank is set

    return deepspeed.zero.GatheredParameters(parameters)
