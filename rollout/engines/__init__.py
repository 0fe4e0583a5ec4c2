"""Generation engines, and the choice between them."""

from __future__ import annotations

from importlib.util import find_spec

from rollout.config import RolloutConfig
from rollout.engines.base import Engine


def chosen_engine(config: RolloutConfig, on_gpu: bool) -> str:
    """What `rollout.engine` comes to where the worker has a GPU, or none: `transformers` or `vllm`. `auto` is vLLM on GPUs where it is installed,
    unless the settings ask for what it cannot do."""
    if config.engine != "auto":
        return config.engine
    whole = (config.temperature, config.top_p, config.top_k) == (1, 1, 0)
    own = config.gold_gains or config.partial or config.values.measured
    return "vllm" if on_gpu and whole and not own and find_spec("vllm") else "transformers"


def make_engine(policy: str, config: RolloutConfig, dtype: str, on_gpu: bool) -> Engine:
    """The engine that `rollout.engine` names, with this policy. Raises as `load_policy`; `RuntimeError` when vLLM is not installed."""
    import torch  # not above: drivers import this file, and start seconds earlier without torch and transformers

    from rollout.policies import load_policy

    torch.set_num_threads(config.threads)
    vllm = chosen_engine(config, on_gpu) == "vllm"
    loaded = load_policy(policy, dtype=dtype, device="cuda" if on_gpu and not vllm else "cpu")  # vLLM has a copy of its own
    if vllm:
        from rollout.engines.vllm_engine import VllmEngine  # an optional package

        return VllmEngine(loaded, config.slots, config.batch_tokens)
    from rollout.engines.transformers_engine import TransformersEngine

    return TransformersEngine(loaded, config.slots, config.batch_tokens, config.partial)
