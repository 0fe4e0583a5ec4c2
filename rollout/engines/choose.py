"""The engine that the configuration names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rollout.config import RolloutConfig
from rollout.engines.transformers_engine import TransformersEngine
from rollout.policy import Policy

if TYPE_CHECKING:
    from rollout.engines.vllm_engine import VllmEngine


def make_engine(policy: Policy, config: RolloutConfig) -> TransformersEngine | VllmEngine:
    """Raises `ValueError` for an engine that there is not, `RuntimeError` when vLLM is asked for and not installed."""
    if config.engine == "transformers":
        return TransformersEngine(policy, config.slots, config.batch_tokens, config.compile_decode)
    if config.engine == "vllm":
        from rollout.engines.vllm_engine import VllmEngine  # only where it is chosen: an optional package

        return VllmEngine(policy, config.slots)
    raise ValueError(f"rollout.engine is {config.engine!r}; expected transformers or vllm")
