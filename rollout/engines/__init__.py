"""Generation engines, and the choice between them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rollout.config import RolloutConfig
from rollout.engines.base import Engine

if TYPE_CHECKING:
    from rollout.policies import Policy


def make_engine(policy: Policy, config: RolloutConfig) -> Engine:
    """The engine that `rollout.engine` names. Raises `RuntimeError` when vLLM is not installed."""
    if config.engine == "transformers":
        from rollout.engines.transformers_engine import TransformersEngine

        return TransformersEngine(policy, config.slots, config.batch_tokens, config.partial)
    from rollout.engines.vllm_engine import VllmEngine  # an optional package

    return VllmEngine(policy, config.slots, config.batch_tokens)
