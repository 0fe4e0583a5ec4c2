"""The DeepSpeed engine of one rank: what is trained, partitioned and offloaded; LoRA (arXiv 2106.09685)."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch

from learner.config import LearnerConfig
from learner.objective.token_logprobs import Scorer
from rollout.policies import Policy, load_policy

ADAPTER = "default"
SMALLEST_PARTITIONED = 10_000  # ZeRO-3 keeps smaller tensors whole on every rank: gathering them costs more than storing them


def build_engine(policy: Policy, config: LearnerConfig) -> Any:
    """The policy's `Scorer` in a DeepSpeed engine with a new AdamW of torch, also on a CPU: nothing has to be compiled."""
    import deepspeed

    prepare(policy, config)
    scorer = Scorer(policy, entropy_gradient=config.entropy_weight != 0)
    trained = [parameter for parameter in scorer.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=config.lr, betas=(config.betas[0], config.betas[1]), weight_decay=config.weight_decay)
    return deepspeed.initialize(model=scorer, optimizer=optimizer, config=engine_settings(config), dist_init_required=False)[0]


def build_reference(path: str, policy: Policy, config: LearnerConfig) -> Any:
    """The policy that training begins with, frozen. With ZeRO-3 it is partitioned; else every rank has a copy, which shares the vision tower of
    the policy if that is frozen. Not for LoRA: there the reference is the policy without its adapters."""
    import deepspeed

    reference = load_policy(path, dtype=config.dtype, device=str(policy.device))
    reference.model.requires_grad_(False)
    if config.zero_stage == 3:
        return deepspeed.initialize(model=Scorer(reference), config=engine_settings(config), dist_init_required=False)[0]
    if config.freeze_vision:
        for name, module in policy.vision.items():
            setattr(reference.model.base_model, name, module)
    return Scorer(reference)


def prepare(policy: Policy, config: LearnerConfig) -> None:
    """Freeze parameters, add adapters, and switch on gradient checkpointing, in place."""
    model = policy.model
    if config.lora_rank:
        model.requires_grad_(False)
        add_adapters(policy.text_model, config)
    if config.freeze_vision:
        for module in policy.vision.values():
            module.requires_grad_(False)
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()  # transformers recomputes only in training mode; dropout stays off
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.eval()


def engine_settings(config: LearnerConfig) -> dict[str, Any]:
    zero: dict[str, Any] = {"stage": config.zero_stage, "stage3_param_persistence_threshold": SMALLEST_PARTITIONED}
    memory = {"device": "cpu", "pin_memory": bool(config.gpus_per_learner)}
    if config.offload != "none":
        zero["offload_optimizer"] = memory
    if config.offload == "parameters":
        zero["offload_param"] = memory
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,  # `LearnerRank` marks the last micro-batch itself
        "gradient_clipping": config.max_grad_norm,
        "bf16": {"enabled": config.dtype == "bfloat16"},
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
    }


def add_adapters(language_model: torch.nn.Module, config: LearnerConfig) -> None:
    """Add adapters to the linear layers that `lora_targets` names, in place. Raises ValueError when no layer has such a name."""
    from peft import LoraConfig, inject_adapter_in_model  # half a second that most runs have no use for

    linear = sorted({name.rpartition(".")[2] for name, m in language_model.named_modules() if isinstance(m, torch.nn.Linear)})
    if wrong := [name for name in config.lora_targets if name not in linear]:
        found = f"learner.lora_targets names {wrong[0]!r}, which no linear layer of the language model is"
        raise ValueError(f"{found}; expected some of {linear}")
    lora = LoraConfig(r=config.lora_rank, lora_alpha=config.lora_alpha, target_modules=list(config.lora_targets), lora_dropout=0.0)
    inject_adapter_in_model(lora, language_model, ADAPTER)


@contextmanager
def without_adapters(model: torch.nn.Module) -> Iterator[None]:
    """The model as it was before `add_adapters`."""
    with ExitStack() as after:
        for layer in _adapted_layers(model).values():
            layer.enable_adapters(False)
            after.callback(layer.enable_adapters, True)
        yield


def _adapted_layers(model: torch.nn.Module) -> dict[str, Any]:
    return {name: module for name, module in model.named_modules() if ADAPTER in getattr(module, "lora_A", ())}


def published_parameters(model: torch.nn.Module, partitioned: bool) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, value), adapters merged. `partitioned` (ZeRO-3): all ranks call this, and a value is valid until the next one is taken."""
    gathered: Callable[..., Any] = nullcontext
    if partitioned:
        import deepspeed  # not before the environment of the rank is set

        gathered = deepspeed.zero.GatheredParameters
    adapted = _adapted_layers(model)
    for name, parameter in model.named_parameters():
        layer, _, kind = name.rpartition(".")
        owner = layer.removesuffix(".base_layer")
        lora: Any = adapted.get(owner) if kind == "weight" else None
        if owner not in adapted and any(name.startswith(f"{place}.lora_") for place in adapted):
            continue
        merged = [lora.lora_A[ADAPTER].weight, lora.lora_B[ADAPTER].weight] if lora else []
        with gathered([parameter, *merged]), torch.no_grad():
            yield name.replace(".base_layer.", "."), parameter + lora.get_delta_weight(ADAPTER) if lora else parameter.detach()
