"""What each process of a run holds on its GPU, estimated before any process exists. Pure.

Parameters, gradients and optimizer of the learner come from DeepSpeed's estimators, which assume 16-bit weights; with LoRA they count the adapters
only, and frozen weights are added. Activations of a decoder layer are the inputs that its matrices keep; attention is fused. A rollout worker holds
the policy, the KV cache of `rollout.batch_tokens` tokens, twice while it grows, and, with `learner.transport=collective`, the weights it has
received. Embedders, shards and a vision tower's activations are not counted."""

import math
from collections.abc import Mapping
from typing import Any

from experiments.config import TrainConfig
from learner.objective.token_logprobs import piece
from rollout.engines.transformers_engine import PREFILL_TOKENS

CUDA_BYTES = 2**29  # of CUDA and its kernels in one process: an assumption
SAMPLING_BYTES, LOGIT_BYTES = 16, 12  # of a float32 logit: in decoding (with probabilities, a sorted copy); in the learner (with gradients)


def learner_memory(config: TrainConfig, policy: Any, parameters: int, trained: int, largest: int) -> dict[str, int]:
    """Part -> bytes on the GPU of one rank. `policy`: the model's configuration; `largest`: parameters of the largest tensor."""
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
    from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs

    learner, text = config.learner, policy.get_text_config()
    b, ranks, offload = 2 if learner.dtype == "bfloat16" else 4, learner.num_learners, learner.offload != "none"
    frozen = b * (parameters - trained) // (ranks if learner.zero_stage == 3 else 1)
    if learner.zero_stage == 3:
        everything = learner.offload == "parameters"
        _, states, _ = estimate_zero3_model_states_mem_needs(trained, largest, ranks, cpu_offload=offload, cpu_offload_params=everything)
    elif learner.zero_stage:
        _, states = estimate_zero2_model_states_mem_needs(trained, ranks, cpu_offload=offload)
    else:
        states = 16 * trained  # float32: weights, gradients, two moments
    reference = b * parameters if learner.kl_weight and not learner.lora_rank else 0
    longest = config.rollout.max_prompt_tokens + config.rollout.max_new_tokens
    tokens = max(learner.tokens_per_micro_batch, longest)  # a longer row goes alone
    layer = b * tokens * (10 * text.hidden_size + 4 * text.intermediate_size)
    head = LOGIT_BYTES * min(tokens, piece(text.vocab_size)) * text.vocab_size
    between_layers = b * tokens * text.hidden_size * text.num_hidden_layers
    kept = between_layers + max(layer, head) if learner.gradient_checkpointing else layer * text.num_hidden_layers + head
    held = {"model states": states + frozen, "activations": kept, "CUDA": CUDA_BYTES}
    return held | ({"reference": reference} if reference else {})


def sampler_memory(config: TrainConfig, policy: Any, parameters: int) -> dict[str, int]:
    """Part -> bytes on the GPU of one rollout worker."""
    text, b = policy.get_text_config(), 2 if config.learner.dtype == "bfloat16" else 4
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    kv_heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    cache = config.rollout.batch_tokens * 2 * text.num_hidden_layers * kv_heads * head * b
    prefill = PREFILL_TOKENS * (3 * text.intermediate_size + 4 * text.hidden_size) * b
    held = {"model states": parameters * b, "KV cache": 2 * cache, "CUDA": CUDA_BYTES}
    held["activations"] = max(prefill, config.rollout.slots * text.vocab_size * SAMPLING_BYTES)
    if config.learner.transport == "collective":
        held["weights received"] = parameters * b
    return held


def processes_on_a_gpu(config: TrainConfig) -> dict[str, Mapping[str, int]]:
    """Kind of GPU -> role -> processes on the fullest GPU of that kind, at most."""
    train, workers = config.train, config.train.num_rollout_workers
    share = train.gpus_per_rollout_worker
    gpus = max(1, math.ceil(workers * share - 1e-6))
    on_one = {"rollout": min(math.ceil(workers / gpus), int(1 / share + 1e-6) or 1)} if share else {}
    learners = {"learner": int(1 / config.learner.gpus_per_learner + 1e-6) or 1} if config.learner.gpus_per_learner else {}
    if train.placement == "colocated":
        return {"every GPU": dict.fromkeys(["learner", *on_one], 1)}
    return {kind: roles for kind, roles in (("rollout GPU", on_one), ("learner GPU", learners)) if roles}
