"""Policies by architecture: text models, VLMs with M-RoPE positions (Qwen-VL), VLMs with ordinary positions (SmolVLM)."""

from rollout.policies.load import load_policy
from rollout.policies.policy import Policy

__all__ = ["Policy", "load_policy"]
